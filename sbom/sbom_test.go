package sbom_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/sbom"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// world has a root directory with layers, and scans images of them.
type world struct {
	t        *testing.T
	root     string
	job      *snapshot.Job
	layers   []layer.ID
	warnings []string
	scanned  []layer.ID
	brought  []layer.ID
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, root: t.TempDir()}
	if err := os.Mkdir(w.tmp(), 0o700); err != nil {
		t.Fatal(err)
	}
	images, err := cas.Open(w.root)
	if err != nil {
		t.Fatal(err)
	}
	store, err := snapshot.Open(snapshot.Config{Root: w.root, Tmp: w.tmp(), Blobs: blob.Store{CAS: images}})
	if err != nil {
		t.Fatal(err)
	}
	w.job = store.Job()
	t.Cleanup(func() {
		for _, f := range []func() error{w.job.Close, store.Close, images.Release} {
			if err := f(); err != nil {
				t.Error(err)
			}
		}
		if left, _ := os.ReadDir(w.tmp()); len(left) > 0 {
			t.Errorf("left in tmp: %v", left)
		}
	})
	return w
}

func (w *world) tmp() string { return filepath.Join(w.root, "tmp") }

// layer adds a layer of an image: files by their paths, with directories ending in a slash, links to what follows "->".
func (w *world) layer(files ...string) {
	w.t.Helper()
	var b bytes.Buffer
	z := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}
		if strings.HasSuffix(h.Name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if to, ok := strings.CutPrefix(files[i+1], "->"); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, to, 0
			files[i+1] = ""
		}
		if err := z.WriteHeader(h); err != nil {
			w.t.Fatal(err)
		}
		if _, err := z.Write([]byte(files[i+1])); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		w.t.Fatal(err)
	}
	id := layer.ID(fmt.Sprintf("%064x", len(w.layers)+1))
	if _, err := w.job.Unpack(w.t.Context(), id, &b, nil); err != nil {
		w.t.Fatal(err)
	}
	w.layers = append(w.layers, id)
}

// scan returns the document of the image that the lowest n layers are, and its packages, "name@version".
func (w *world) scan(n int) ([]byte, []string) {
	w.t.Helper()
	w.warnings, w.scanned, w.brought = nil, nil, nil
	var mu sync.Mutex
	s := &sbom.Scanner{
		Root: w.root, Tmp: w.tmp(), Warn: func(text string) { w.warnings = append(w.warnings, text) },
		Scanned: func(id layer.ID) { w.scanned = append(w.scanned, id) },
	}
	doc, err := s.Scan(w.t.Context(), &sbom.Image{
		Name: "sbom", Created: time.Unix(1_700_000_000, 0), Layers: w.layers[:n],
		Bring: func(_ context.Context, id layer.ID) error {
			mu.Lock()
			defer mu.Unlock()
			w.brought = append(w.brought, id)
			return nil
		},
		View: func(ctx context.Context) ([]layer.Part, error) {
			var all []layer.Part
			for _, id := range w.layers[:n] {
				m, err := w.job.Manifest(ctx, id)
				if err != nil {
					return nil, err
				}
				all = append(all, layer.Part{ID: id, Manifest: m})
			}
			return all, nil
		},
		Files: w.job.Files,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	var d struct {
		Packages []struct{ Name, VersionInfo, SPDXID string }
	}
	if err := json.Unmarshal(doc, &d); err != nil {
		w.t.Fatal(err)
	}
	var all []string
	for _, p := range d.Packages[1:] {
		all = append(all, p.Name+"@"+p.VersionInfo)
	}
	return doc, all
}

func (w *world) want(n int, packages ...string) []byte {
	w.t.Helper()
	doc, got := w.scan(n)
	if !slices.Equal(got, packages) {
		w.t.Errorf("got %s, want %s", got, packages)
	}
	return doc
}

func npm(name, version string) string {
	return fmt.Sprintf(`{"name":%q,"version":%q,"license":"see %s"}`, name, version, name)
}

const debian = "ID=debian\nVERSION_ID=12\n"

// A package is in the image if the file that tells of it is to be seen there.
func TestLayers(t *testing.T) {
	w := newWorld(t)
	w.layer("etc/os-release", debian, "var/lib/dpkg/status", "Package: a\nVersion: 1\n\nPackage: b\nVersion: 1\n",
		"app/node_modules/x/package.json", npm("x", "1"), "app/node_modules/y/package.json", npm("y", "1"),
		"other/package-lock.json", `{"packages":{"node_modules/locked":{"version":"1"}}}`,
		"app/package-lock.json", `{"packages":{"node_modules/unused":{"version":"1"}}}`)
	w.layer("var/lib/dpkg/status", "Package: b\nVersion: 2\n")
	w.layer("app/node_modules/.wh.x", "", "copy/z/package.json", npm("z", "1"), "linked/package.json", "->copy/z/package.json")
	w.layer("app/node_modules/", "", "app/node_modules/.wh..wh..opq", "", "other/node_modules/", "")

	w.want(1, "debian@12", "a@1", "b@1", "locked@1", "x@1", "y@1")
	w.want(2, "debian@12", "b@2", "locked@1", "x@1", "y@1")
	w.want(3, "debian@12", "b@2", "locked@1", "y@1", "z@1")
	if want := w.layers[2:3]; !slices.Equal(w.scanned, want) || !slices.Equal(w.brought, want) {
		t.Errorf("scanned %s, brought %s", w.scanned, w.brought)
	}
	doc := w.want(4, "debian@12", "b@2", "z@1")
	if !bytes.Contains(doc, []byte(`"found in /copy/z/package.json, /linked/package.json"`)) {
		t.Errorf("%s", doc)
	}
	// Nothing is read again, and the document is the same.
	again := w.want(4, "debian@12", "b@2", "z@1")
	if len(w.brought) > 0 || len(w.scanned) > 0 || !bytes.Equal(doc, again) {
		t.Errorf("brought %s, scanned %s", w.brought, w.scanned)
	}
}

// What is kept of a layer is checked, and made again.
func TestKept(t *testing.T) {
	w := newWorld(t)
	w.layer("package.json", npm("x", "1"))
	w.want(1, "x@1")
	files, err := filepath.Glob(filepath.Join(w.root, "scans", "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "kiln scan 999 x", strings.Replace(string(data), `"x"`, `"y"`, 1)} {
		if err := os.WriteFile(files[0], []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		p, ok := sbom.Part(w.root, w.tmp()).(*part.Files)
		if !ok || p.Sound(files[0]) == nil {
			t.Errorf("%q is taken for sound", bad)
		}
		w.want(1, "x@1")
		if len(w.scanned) != 1 {
			t.Errorf("%q was used", bad)
		}
		if err := p.Sound(files[0]); err != nil {
			t.Error(err)
		}
	}
}

// A file that is damaged is warned of each time, and the rest is in the document.
func TestDamaged(t *testing.T) {
	w := newWorld(t)
	w.layer("package.json", "{", "node_modules/x/package.json", npm("x", "1"), "var/lib/rpm/Packages", strings.Repeat("x", 100),
		"opt/a.jar", "x", "etc/os-release", "\x00", "usr/bin/x.so", "\x7fELF"+strings.Repeat("\xff", 100))
	for range 2 {
		w.want(1, "x@1")
		if len(w.warnings) != 3 || !strings.HasPrefix(w.warnings[0], "SBOM: /opt/a.jar: a.jar: zip: not a valid zip file; packages may be missing") {
			t.Errorf("%q", w.warnings)
		}
	}
	w.layer("package.json", npm("fixed", "1"), ".wh.opt", "", "var/lib/rpm/.wh..wh..opq", "")
	if w.want(2, "fixed@1", "x@1"); len(w.warnings) > 0 {
		t.Errorf("%q", w.warnings)
	}
}

// The document is what SPDX 2.3 says it is.
func TestSchema(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile("testdata/spdx-schema-2.3.json")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.layer("lib/apk/db/installed", "P:musl\nV:1.2\nA:x86_64\no:musl\nL:MIT\nm:A <a@b>\n\nP:\xff\x1b[31m\nV:2\nL:My \"own\"\n",
		"a.dist-info/METADATA", "Name: a\nVersion: 1\nLicense: MIT\n", "b.dist-info/METADATA", "Name: b\nVersion: 1\nLicense: BSD 3\n",
		"node_modules/@s/x/package.json", npm("@s/x", "1"))
	for n := range 2 {
		doc, _ := w.scan(n)
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); err != nil {
			t.Errorf("%v\n%s", err, doc)
		}
	}
}

// A scan ends with its context.
func TestEnd(t *testing.T) {
	w := newWorld(t)
	w.layer("package.json", npm("x", "1"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := &sbom.Scanner{Root: w.root, Tmp: w.tmp()}
	_, err := s.Scan(ctx, &sbom.Image{
		Layers: w.layers, Bring: func(context.Context, layer.ID) error { return nil }, Files: func(_ context.Context, id layer.ID) (layer.Files, error) {
			return w.job.Files(t.Context(), id)
		},
		View: func(context.Context) ([]layer.Part, error) {
			m, err := w.job.Manifest(t.Context(), w.layers[0])
			return []layer.Part{{ID: w.layers[0], Manifest: m}}, err
		},
	})
	if err == nil {
		t.Error("a scan went on")
	}
}
