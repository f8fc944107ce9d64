package cas

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tmpFiles(t *testing.T, s *Store) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.Root(), tmpDir))
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestParseDigest(t *testing.T) {
	good := "sha256:" + strings.Repeat("0a", 32)
	if d, err := ParseDigest(good); err != nil || string(d) != good {
		t.Fatalf("ParseDigest(%q) = %q, %v", good, d, err)
	}
	hex := strings.Repeat("a", 64)
	for _, bad := range []string{"", "sha256:", hex, "sha256:" + hex[1:], "sha256:" + hex + "a", "sha256:" + hex + "\n", "sha256:" + strings.ToUpper(hex),
		"sha512:" + hex + hex, "md5:" + hex[:32], "SHA256:" + hex, "sha256:../../" + hex[6:], "sha256:" + hex[:63] + "\x00", "sha256:" + strings.Repeat("a", 10000)} {
		if d, err := ParseDigest(bad); err == nil {
			t.Errorf("ParseDigest(%.80q) = %q", bad, d)
		} else if len(err.Error()) > 300 {
			t.Errorf("error of %d bytes", len(err.Error()))
		}
	}
}

func TestWriter(t *testing.T) {
	s := open(t)
	data := bytes.Repeat([]byte("kiln"), 100_000)
	want := digest.FromBytes(data)
	for range 2 { // the second one finds the blob there
		w, err := s.Create(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		desc, err := w.Commit(want, int64(len(data)))
		if err != nil || desc.Digest != want || desc.Size != int64(len(data)) {
			t.Fatalf("Commit = %+v, %v", desc, err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := s.ReadAll(desc, 0); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("ReadAll = %d bytes, %v", len(got), err)
		}
	}
	if left := tmpFiles(t, s); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

func TestWriterRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		digest digest.Digest
		size   int64
	}{
		{"digest", digest.FromString("other"), -1},
		{"size", "", 3},
		{"both", digest.FromString("other"), 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			w, err := s.Create(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(w, "data")
			_, err = w.Commit(c.digest, c.size)
			if _, ok := errors.AsType[*MismatchError](err); !ok {
				t.Fatalf("Commit = %v, want a MismatchError", err)
			}
			if _, err := s.Stat(digest.FromString("data")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Stat = %v, want no blob", err)
			}
			if left := tmpFiles(t, s); len(left) > 0 {
				t.Errorf("left in tmp: %v", left)
			}
		})
	}
}

// TestDamage reads blobs that were damaged in the store: never wrong bytes with io.EOF, and the blob can be made again.
func TestDamage(t *testing.T) {
	data := bytes.Repeat([]byte("x"), 10_000)
	for name, damage := range map[string]func([]byte) []byte{
		"flipped": func(b []byte) []byte { b[5000] ^= 1; return b },
		"shorter": func(b []byte) []byte { return b[:9_999] },
		"empty":   func(b []byte) []byte { return nil },
		"longer":  func(b []byte) []byte { return append(b, 'x') },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			desc, err := s.Put("text/plain", data)
			if err != nil {
				t.Fatal(err)
			}
			path, _ := s.Path(desc.Digest)
			if err := os.WriteFile(path, damage(bytes.Clone(data)), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err = s.ReadAll(desc, 0)
			mismatch, ok := errors.AsType[*MismatchError](err)
			if !ok || mismatch.Where != path {
				t.Fatalf("ReadAll = %v, want a MismatchError that names %s", err, path)
			}
			if s.Has(desc) {
				t.Error("the damaged blob is still there")
			}
			if _, err := s.Put("text/plain", data); err != nil {
				t.Fatal(err)
			}
			if _, err := s.ReadAll(desc, 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLyingDescriptor asks for a sound blob by a descriptor with another size: an error, and the blob stays.
func TestLyingDescriptor(t *testing.T) {
	s := open(t)
	desc, err := s.Put("text/plain", []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{3, 5} {
		lie := desc
		lie.Size = size
		if _, err := s.ReadAll(lie, 0); err == nil {
			t.Errorf("size %d: no error", size)
		}
		if !s.Has(desc) {
			t.Fatalf("size %d: the blob is gone", size)
		}
	}
	if _, err := s.ReadAll(desc, 2); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("over the limit: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, prepare := range map[string]func(string) error{
		"group-writable": func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o770)) },
		"other user's":   func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chown(p, 1234, 1234)) },
		"foreign":        func(p string) error { return errors.Join(os.Mkdir(p, 0o755), os.WriteFile(p+"/letter", nil, 0o600)) },
		"other version": func(p string) error {
			return errors.Join(os.Mkdir(p, 0o700), os.WriteFile(p+"/oci-layout", []byte(`{"imageLayoutVersion":"2.0.0"}`), 0o600))
		},
		"a file": func(p string) error { return os.WriteFile(p, nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name)
			if err := prepare(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Stat(path)
			if _, err := Open(path); err == nil {
				t.Fatal("opened")
			} else if !strings.Contains(err.Error(), path) {
				t.Errorf("the error does not name %s: %v", path, err)
			}
			if after, _ := os.Stat(path); after.Mode() != before.Mode() {
				t.Errorf("mode %v became %v", before.Mode(), after.Mode())
			}
		})
	}
}

func TestOpenClosesRootToOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err != nil {
		t.Fatal(err)
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", fi.Mode())
	}
}

// TestOpenSweeps leaves the temporary files of the living and removes those of the dead.
func TestOpenSweeps(t *testing.T) {
	s := open(t)
	w, err := s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	dead := filepath.Join(s.Root(), tmpDir, tmpPrefix+"dead")
	if err := os.WriteFile(dead, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.Root()); err != nil {
		t.Fatal(err)
	}
	if left := tmpFiles(t, s); len(left) != 1 {
		t.Fatalf("left in tmp: %v, want the living one", left)
	}
	fmt.Fprint(w, "data")
	if _, err := w.Commit("", -1); err != nil {
		t.Fatal(err)
	}
}

func TestConcurrentOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			s, err := Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			desc, err := s.Put(ocispec.MediaTypeImageManifest, []byte("same"))
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Tag(fmt.Sprintf("example.com/a:%d", i), desc); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if images, err := s.Images(); err != nil || len(images) != 16 {
		t.Errorf("Images = %d, %v, want 16", len(images), err)
	}
}

func TestTag(t *testing.T) {
	s := open(t)
	a, _ := s.Put(ocispec.MediaTypeImageManifest, []byte("a"))
	b, _ := s.Put(ocispec.MediaTypeImageManifest, []byte("b"))
	tag := func(name string, desc ocispec.Descriptor) {
		t.Helper()
		if err := s.Tag(name, desc); err != nil {
			t.Fatal(err)
		}
	}
	names := func() string {
		t.Helper()
		images, err := s.Images()
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, img := range images {
			which := "a"
			if img.Desc.Digest == b.Digest {
				which = "b"
			}
			out = append(out, img.Name+"="+which)
		}
		return strings.Join(out, " ")
	}
	tag("", a)
	tag("", a)
	if got := names(); got != "=a" {
		t.Errorf("nameless: %s", got)
	}
	tag("r/x:1", a)
	tag("r/y:1", a)
	tag("", a)
	if got := names(); got != "r/x:1=a r/y:1=a" {
		t.Errorf("named: %s", got)
	}
	tag("r/x:1", b)
	if got := names(); got != "r/y:1=a r/x:1=b" {
		t.Errorf("moved: %s", got)
	}
	if img, err := s.Lookup("r/x:1"); err != nil || img.Desc.Digest != b.Digest {
		t.Errorf("Lookup by name = %+v, %v", img, err)
	}
	for _, id := range []string{string(b.Digest), b.Digest.Encoded(), b.Digest.Encoded()[:12]} {
		if img, err := s.Lookup(id); err != nil || img.Desc.Digest != b.Digest {
			t.Errorf("Lookup(%s) = %+v, %v", id, img, err)
		}
	}
	for _, id := range []string{"", "r/x:2", "abc", "0000", "sha256:"} {
		_, err := s.Lookup(id)
		if _, ok := errors.AsType[*NotFoundError](err); !ok {
			t.Errorf("Lookup(%q) = %v, want a NotFoundError", id, err)
		}
	}
	if err := s.Untag("r/x:1"); err != nil {
		t.Error(err)
	}
	err := s.Untag("r/x:1")
	if _, ok := errors.AsType[*NotFoundError](err); !ok {
		t.Errorf("second Untag = %v", err)
	}
	if err := s.Drop(a); err != nil {
		t.Error(err)
	}
	if got := names(); got != "" {
		t.Errorf("in the end: %s", got)
	}
	for _, bad := range []string{"a b", "../x", "a/", "/a", "a\n", "a::b", "ä"} {
		if err := s.Tag(bad, a); err == nil {
			t.Errorf("Tag(%q) passed", bad)
		}
	}
	if err := s.Tag("r/x:1", ocispec.Descriptor{Digest: digest.FromString("nowhere"), Size: 7}); err == nil {
		t.Error("tagged a blob that does not exist")
	}
}

// TestDamagedIndex must not lose the images that an unreadable index.json named.
func TestDamagedIndex(t *testing.T) {
	s := open(t)
	desc, _ := s.Put(ocispec.MediaTypeImageManifest, []byte("a"))
	for _, bad := range []string{"", "{", `{"schemaVersion":1}`, `{"schemaVersion":2,"manifests":[{"digest":"sha256:../../../etc/passwd"}]}`} {
		if err := os.WriteFile(s.indexPath(), []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		err := s.Tag("a:1", desc)
		if err == nil || !strings.Contains(err.Error(), s.indexPath()) || !strings.Contains(err.Error(), "kiln check --repair") {
			t.Errorf("Tag over %q = %v, want the path and advice", bad, err)
		}
		if got, _ := os.ReadFile(s.indexPath()); string(got) != bad {
			t.Errorf("index.json became %q", got)
		}
	}
}

// TestOtherTools reads the store with skopeo and go-containerregistry by an image's full name while several have one tag.
func TestOtherTools(t *testing.T) {
	s := open(t)
	other := t.TempDir()
	names := []string{"docker.io/library/app:latest", "docker.io/library/other:latest", "127.0.0.1:5000/team/app:latest"}
	for _, name := range names {
		img, err := random.Image(1000, 2)
		if err != nil {
			t.Fatal(err)
		}
		img = mutate.MediaType(img, types.OCIManifestSchema1) // skopeo looks for no other type in a layout
		if _, err := layout.FromPath(other); err != nil {
			if _, err := layout.Write(other, empty.Index); err != nil {
				t.Fatal(err)
			}
		}
		p, _ := layout.FromPath(other)
		if err := p.AppendImage(img); err != nil {
			t.Fatal(err)
		}
		raw, _ := img.RawManifest()
		mt, _ := img.MediaType()
		copyBlobs(t, s, filepath.Join(other, blobsDir))
		if err := s.Tag(name, ocispec.Descriptor{MediaType: string(mt), Digest: digest.FromBytes(raw), Size: int64(len(raw))}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		out, err := exec.Command("skopeo", "inspect", "--raw", "oci:"+s.Root()+":"+name).CombinedOutput()
		if err != nil {
			t.Fatalf("skopeo inspect %s: %v\n%s", name, err, out)
		}
		img, _ := s.Lookup(name)
		if digest.FromBytes(out) != img.Desc.Digest {
			t.Errorf("skopeo reads another image for %s", name)
		}
	}
	p, err := layout.FromPath(s.Root())
	if err != nil {
		t.Fatal(err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
}

func copyBlobs(t *testing.T, s *Store, dir string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Put("", data); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "index.json")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if index, err := readIndex(path); err == nil {
			if _, err := json.Marshal(index); err != nil {
				t.Error(err)
			}
		}
	})
}

// What one job of a process relies on stays until that job ends, whatever the others do, and goes then.
func TestJobs(t *testing.T) {
	s := open(t)
	a, b := s.Job(), s.Job()
	desc, err := a.Put("application/x", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if !b.Has(desc) {
		t.Fatal("a job does not see the blob of another")
	}
	p := s.Part(t.TempDir(), &Named{Reached: *newReached()})
	remove := func() bool {
		t.Helper()
		for it, err := range p.Items(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			gone, err := p.Remove(it)
			if err != nil {
				t.Fatal(err)
			}
			if gone == p.InUse(it) && gone {
				t.Errorf("%s was removed and is in use", it.ID)
			}
			return gone
		}
		t.Fatal("the blob is not listed")
		return false
	}
	if remove() {
		t.Error("a blob that two jobs hold was removed")
	}
	if err := a.Release(); err != nil {
		t.Fatal(err)
	}
	if remove() {
		t.Error("a blob that one job holds was removed")
	}
	if err := b.Release(); err != nil {
		t.Fatal(err)
	}
	if !remove() {
		t.Error("a blob that nobody holds stayed")
	}
}

// Bytes that a reader verifies are stored under its digest without being hashed again, if they are as many.
func TestCreateVerified(t *testing.T) {
	s := open(t)
	data := []byte("hello")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	for _, tc := range []struct {
		name string
		sent []byte
		ok   bool
	}{{"others", []byte("hellO"), false}, {"fewer", data[:3], false}, {"more", []byte("hello!"), false}, {"right", data, true}} {
		w, err := s.CreateVerified(t.Context(), desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = io.Copy(w, VerifyReader(io.NopCloser(bytes.NewReader(tc.sent)), desc, tc.name)); err == nil {
			_, err = w.Commit(desc.Digest, desc.Size)
		}
		if w.Close(); (err == nil) != tc.ok || s.Has(desc) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if got, err := s.ReadAll(desc, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%q, %v", got, err)
	}
	w, err := s.CreateVerified(t.Context(), digest.FromString("hell"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.Write([]byte("hel"))
	if _, err := w.Commit(digest.FromString("hell"), 4); err == nil {
		t.Error("a blob that is too short was committed")
	}
}
