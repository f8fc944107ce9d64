package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCopyOfOtherLayer copies from an image whose configuration names the layer of another image, and whose blob is not that layer. It
// fails, and changes nothing of what is known of the layer.
func TestCopyOfOtherLayer(t *testing.T) {
	set := openImages(t)
	good, evil := archiveOf(t, file{name: "f", data: "good"}), archiveOf(t, file{name: "f", data: "evil"})
	load := func(name string, tarball []byte) {
		t.Helper()
		var blob bytes.Buffer
		z := gzip.NewWriter(&blob)
		if _, err := z.Write(tarball); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`, sha256.Sum256(good))
		archive := archiveOf(t, file{name: "manifest.json", data: `[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["` + name + `"]}]`},
			file{name: "c.json", data: config}, file{name: "l.tar", data: blob.String()})
		if _, err := set.Load(t.Context(), bytes.NewReader(archive), LoadOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	copied := func(name string) (string, error) {
		dest := filepath.Join(dir, strings.TrimSuffix(name, ":1"))
		if _, err := set.Copy(t.Context(), name, "/f", dest, CopyOptions{Platform: "linux/amd64"}); err != nil {
			return "", err
		}
		data, err := os.ReadFile(dest)
		return string(data), err
	}
	load("evil:1", evil)
	for range 2 { // the second time a listing may be kept already
		if got, err := copied("evil:1"); err == nil || !strings.Contains(err.Error(), "the image's config says") {
			t.Errorf("copied %q, error %v", got, err)
		}
	}
	load("good:1", good)
	if got, err := copied("good:1"); got != "good" || err != nil {
		t.Errorf("copied %q, error %v", got, err)
	}
	if got, err := copied("evil:1"); err == nil { // now the listing is known
		t.Errorf("copied %q", got)
	}
}

// TestCopyOfReplacedNames copies files of a layer that replaces an entry after it has linked to it: the bytes of the link are those of an
// entry with the path of another file, or of none.
func TestCopyOfReplacedNames(t *testing.T) {
	set := openImages(t)
	var tarball bytes.Buffer
	w := tar.NewWriter(&tarball)
	for _, f := range []file{
		{name: "d/a", data: "old a"}, {name: "d/b", data: "old b"}, {name: "d/b", target: "d/a"}, {name: "d/a", data: "new a"},
		{name: "d/x", data: "old x"}, {name: "d/y", target: "d/x"}, {name: "d/z", target: "d/y"}, {name: "d/x", data: "longer new x"}, {name: "d/y", data: "new y"},
		{name: "d/same", data: "new a"},
	} {
		h := &tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f.data))}
		if f.target != "" {
			h.Typeflag, h.Linkname = tar.TypeLink, f.target
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`, sha256.Sum256(tarball.Bytes()))
	archive := archiveOf(t, file{name: "manifest.json", data: `[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["app:1"]}]`},
		file{name: "c.json", data: config}, file{name: "l.tar", data: tarball.String()})
	if _, err := set.Load(t.Context(), bytes.NewReader(archive), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a": "new a", "b": "old a", "x": "longer new x", "y": "new y", "z": "old x", "same": "new a"}
	all := filepath.Join(t.TempDir(), "all")
	if _, err := set.Copy(t.Context(), "app:1", "/d", all, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, text := range want {
		if got, err := os.ReadFile(filepath.Join(all, name)); err != nil || string(got) != text {
			t.Errorf("%s is %q, %v; want %q", name, got, err, text)
		}
		one := filepath.Join(t.TempDir(), name)
		if _, err := set.Copy(t.Context(), "app:1", "/d/"+name, one, CopyOptions{}); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(one); err != nil || string(got) != text {
			t.Errorf("%s alone is %q, %v; want %q", name, got, err, text)
		}
	}
}
