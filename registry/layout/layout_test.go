package layout

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/registry/registrytest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	canary = "c4n4ry"
	// hang is far longer than anything takes that a test waits for.
	hang = 5 * time.Minute
)

var amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}

func openLayout(t *testing.T, dir string) *Layout {
	t.Helper()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestLayout reads images from kiln's own store, and from a layout that skopeo made of it.
func TestLayout(t *testing.T) {
	s := registrytest.NewStore(t)
	arm := ocispec.Platform{OS: "linux", Architecture: "arm64"}
	a, b := registrytest.PutImage(t, s, amd64, 1000), registrytest.PutImage(t, s, arm, 1000)
	index := registrytest.PutIndex(t, s, a, b)
	const one, all = "docker.io/library/one:latest", "docker.io/library/all:latest"
	if err := errors.Join(s.Tag(one, a), s.Tag(all, index)); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("skopeo", "copy", "oci:"+s.Root()+":"+one, "oci:"+copied+":v1").CombinedOutput(); err != nil {
		t.Fatalf("skopeo copy: %v\n%s", err, out)
	}
	layout := func(entries ...ocispec.Descriptor) string {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(s.Root())); err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: entries})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "index.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	tagged := func(d ocispec.Descriptor, name string) ocispec.Descriptor {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
		return d
	}
	unnamed, two, perPlatform := layout(a), layout(tagged(a, "latest"), tagged(b, "other")), layout(a, b)
	for _, c := range []struct {
		dir, ref string
		p        ocispec.Platform
		want     ocispec.Descriptor
	}{
		{s.Root(), one, amd64, a}, {s.Root(), all, arm, b}, {s.Root(), string(index.Digest), amd64, a}, {s.Root(), string(b.Digest), arm, b},
		{copied, "v1", amd64, a}, {copied, "", amd64, a}, {copied, "v2", amd64, a},
		{unnamed, "", amd64, a}, {unnamed, "v1", amd64, a}, {two, "", amd64, a}, {two, "other", arm, b}, {perPlatform, "", arm, b}, {perPlatform, "latest", amd64, a},
	} {
		to := registrytest.NewStore(t)
		img, err := registry.Pull(t.Context(), openLayout(t, c.dir), c.ref, c.p, to)
		if err != nil {
			t.Errorf("%s %s: %v", c.dir, c.ref, err)
			continue
		}
		if img.Desc.Digest != c.want.Digest || !to.Has(img.Manifest.Layers[0]) {
			t.Errorf("%s %s = %+v", c.dir, c.ref, img)
		}
	}
	for _, ref := range []string{"v2", "sha256:" + strings.Repeat("0", 64), "../../etc"} {
		if _, err := openLayout(t, two).Resolve(t.Context(), ref, amd64, registrytest.NewStore(t)); err == nil || !strings.Contains(err.Error(), two) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	_, err := openLayout(t, s.Root()).Resolve(t.Context(), all, ocispec.Platform{OS: "linux", Architecture: "riscv64"}, registrytest.NewStore(t))
	if _, ok := errors.AsType[*image.PlatformError](err); !ok {
		t.Errorf("a platform that is not there: %v", err)
	}
}

// TestManyNames asks for a name that a layout with many does not have.
func TestManyNames(t *testing.T) {
	s := registrytest.NewStore(t)
	descs := []ocispec.Descriptor{registrytest.PutImage(t, s, amd64, 1000), registrytest.PutImage(t, s, amd64, 2000)}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	for i := range 5000 {
		desc := descs[i%2]
		desc.Annotations = map[string]string{ocispec.AnnotationRefName: fmt.Sprintf("name%d", i)}
		index.Manifests = append(index.Manifests, desc)
	}
	data, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Root(), "index.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = openLayout(t, s.Root()).Resolve(t.Context(), "other", amd64, registrytest.NewStore(t))
	if err == nil || len(err.Error()) > 4<<10 || !strings.Contains(err.Error(), "name0, name1, ") || !strings.Contains(err.Error(), " and 4980 more") {
		t.Errorf("%v", err)
	}
}

// A layout without images is not said to have some without names.
func TestNoImages(t *testing.T) {
	s := registrytest.NewStore(t)
	if err := os.WriteFile(s.Root()+"/index.json", []byte(`{"schemaVersion":2,"manifests":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"", "x:1"} {
		_, err := openLayout(t, s.Root()).Resolve(t.Context(), ref, amd64, registrytest.NewStore(t))
		if err == nil || !strings.Contains(err.Error(), "it has no images") {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

// TestHostile has blobs that are links out of the layout, fifos, wrong or too large.
func TestHostile(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(canary), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(root, blob string) error{
		"a link to a file outside": func(_, blob string) error { return errors.Join(os.Remove(blob), os.Symlink(secret, blob)) },
		"a relative link outside": func(_, blob string) error {
			return errors.Join(os.Remove(blob), os.Symlink("../../../../../../../.."+secret, blob))
		},
		"a fifo":         func(_, blob string) error { return errors.Join(os.Remove(blob), syscall.Mkfifo(blob, 0o600)) },
		"a directory":    func(_, blob string) error { return errors.Join(os.Remove(blob), os.Mkdir(blob, 0o700)) },
		"a device":       func(_, blob string) error { return errors.Join(os.Remove(blob), os.Symlink("/dev/zero", blob)) },
		"other content":  func(_, blob string) error { return os.WriteFile(blob, []byte("{}"), 0o600) },
		"longer":         func(_, blob string) error { return os.Truncate(blob, 1<<30) },
		"index.json big": func(root, _ string) error { return os.Truncate(root+"/index.json", 1<<30) },
		"index.json is a fifo": func(root, _ string) error {
			return errors.Join(os.Remove(root+"/index.json"), syscall.Mkfifo(root+"/index.json", 0o600))
		},
		"blobs is a link": func(root, _ string) error {
			return errors.Join(os.RemoveAll(root+"/blobs"), os.Symlink("/", root+"/blobs"))
		},
		"a digest that is a path": func(root, _ string) error {
			return os.WriteFile(root+"/index.json", []byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:../../../`+secret+`","size":15}]}`), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := registrytest.NewStore(t)
			desc := registrytest.PutImage(t, s, amd64, 1000)
			if err := s.Tag("x:1", desc); err != nil {
				t.Fatal(err)
			}
			l := openLayout(t, s.Root())
			blob, _ := s.Path(desc.Digest)
			if err := spoil(s.Root(), blob); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				_, err := l.Resolve(t.Context(), "x:1", amd64, registrytest.NewStore(t))
				done <- err
			}()
			select {
			case err := <-done:
				if err == nil || strings.Contains(err.Error(), canary) {
					t.Errorf("%v", err)
				}
			case <-time.After(hang):
				t.Fatal("it hangs")
			}
		})
	}
	// A link inside the layout is followed.
	s := registrytest.NewStore(t)
	desc := registrytest.PutImage(t, s, amd64, 1000)
	if err := s.Tag("x:1", desc); err != nil {
		t.Fatal(err)
	}
	blob, _ := s.Path(desc.Digest)
	if err := errors.Join(os.Rename(blob, s.Root()+"/moved"), os.Symlink("/moved", blob)); err != nil {
		t.Fatal(err)
	}
	if _, err := openLayout(t, s.Root()).Resolve(t.Context(), "x:1", amd64, registrytest.NewStore(t)); err != nil {
		t.Error(err)
	}
}

func TestFetchVerifies(t *testing.T) {
	s := registrytest.NewStore(t)
	desc := registrytest.PutImage(t, s, amd64, 1000)
	path, _ := s.Path(desc.Digest)
	data, _ := os.ReadFile(path)
	data[3] ^= 1
	os.WriteFile(path, data, 0o644)
	rc, err := openLayout(t, s.Root()).Fetch(t.Context(), "", desc)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	_, err = io.ReadAll(rc)
	if _, ok := errors.AsType[*cas.MismatchError](err); !ok {
		t.Errorf("ReadAll = %v", err)
	}
}

// TestEnds shows that reading a blob of a layout ends with the context.
func TestEnds(t *testing.T) {
	s := registrytest.NewStore(t)
	desc := registrytest.PutImage(t, s, amd64, 1<<20)
	if err := s.Tag("x:1", desc); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Pull(ctxtest.EndAfter(2), openLayout(t, s.Root()), "x:1", amd64, registrytest.NewStore(t)); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Pull: %v", err)
	}
	var m ocispec.Manifest
	data, err := s.ReadAll(desc, 0)
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := openLayout(t, s.Root()).Fetch(ctxtest.EndAfter(3), "", m.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Fetch: %v", err)
	}
}
