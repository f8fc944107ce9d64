package images

import (
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
