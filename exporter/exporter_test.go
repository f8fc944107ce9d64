package exporter

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/kilntest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/snapshot/compose"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// made is a root with an image of two layers in it.
type made struct {
	*Blobs
	t      *testing.T
	image  Image
	layers *snapshot.Job
}

var when = time.Unix(1700000000, 123456789).UTC()

func newMade(t *testing.T) *made {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	store, err := cas.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	m := &made{t: t}
	m.Blobs = &Blobs{Store: store}
	m.reopen()
	file := func(path, text string) layer.Entry {
		return layer.Entry{Path: path, Type: layer.File, Mode: 0o644, ModTime: when, Link: text}
	}
	m.layer(
		layer.Entry{Path: "bin", Type: layer.Dir, Mode: 0o755, ModTime: when},
		layer.Entry{Path: "bin/su", Type: layer.File, Mode: 0o4755, ModTime: when, Link: "set user id"},
		layer.Entry{Path: "bin/link", Type: layer.Symlink, Mode: 0o777, Link: "../../outside/file", ModTime: when},
		file("gone", "gone"),
		layer.Entry{Path: "pipe", Type: layer.Fifo, Mode: 0o600, ModTime: when},
	)
	m.layer(
		file("bin/zeros", string(make([]byte, 300000))),
		layer.Entry{Path: "closed", Type: layer.Dir, Mode: 0o500, UID: 7, GID: 8, ModTime: when},
		file("closed/inner", strings.Repeat("inner", 1000)),
		layer.Entry{Path: "gone", Type: layer.Whiteout},
	)
	created := when
	m.image.Config = dockerspec.DockerOCIImage{Image: ocispec.Image{Created: &created, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		History: []ocispec.History{{CreatedBy: "COPY"}, {CreatedBy: "RUN"}}}}
	return m
}

// reopen forgets what the process knows of the snapshot store, as a new one does.
func (m *made) reopen() {
	m.t.Helper()
	s, err := snapshot.Open(snapshot.Config{Root: m.Store.Root(), Tmp: m.t.TempDir(), Blobs: blob.Store{CAS: m.Store}})
	if err != nil {
		m.t.Fatal(err)
	}
	m.layers = s.Job()
	m.t.Cleanup(func() { m.layers.Close() })
	m.Layers = here{m.layers}
}

// here are layers of which nothing is elsewhere.
type here struct{ *snapshot.Job }

func (here) Fetch(context.Context, layer.ID, ocispec.Descriptor) error { return nil }
func (here) Repository(layer.ID) string                                { return "" }

// layer commits a layer; the Link of a File is its text.
func (m *made) layer(list ...layer.Entry) {
	m.t.Helper()
	fail := func(err error) {
		if err != nil {
			m.t.Helper()
			m.t.Fatal(err)
		}
	}
	p, err := m.layers.New()
	fail(err)
	defer p.Close()
	parent, err := m.layers.Stack(m.t.Context(), m.ids())
	fail(err)
	b := compose.New(parent, m.t.TempDir(), when, p.Writer())
	defer b.Close()
	for _, e := range list {
		if e.Type == layer.Whiteout {
			fail(b.Whiteout(e.Path))
			continue
		}
		var body io.Reader
		if e.Type == layer.File {
			body, e.Link = strings.NewReader(e.Link), ""
		}
		fail(b.Put(e, body))
	}
	fail(b.Finish())
	c, err := p.Commit(m.t.Context(), b, "")
	fail(err)
	m.image.Layers = append(m.image.Layers, Layer{ID: c.ID})
}

func (m *made) ids() (ids []layer.ID) {
	for _, l := range m.image.Layers {
		ids = append(ids, l.ID)
	}
	return ids
}

func (m *made) tree() layer.Tree {
	m.t.Helper()
	t, err := m.layers.Stack(m.t.Context(), m.ids())
	if err != nil {
		m.t.Fatal(err)
	}
	return t
}

func (m *made) assemble(f Form) *Assembled {
	m.t.Helper()
	a, err := m.Assemble(m.t.Context(), []Image{m.image}, f)
	if err != nil {
		m.t.Fatal(err)
	}
	return a
}

var gz = Form{Layers: blob.Encoding{Compression: blob.Compression{Type: "gzip", Level: -1}}}

func TestOCITarAndDirectory(t *testing.T) {
	m := newMade(t)
	for name, form := range map[string]Form{
		"gzip": gz, "gzip of docker": {Layers: gz.Layers, Docker: true}, "plain": {Layers: blob.Encoding{Compression: blob.Uncompressed}}, "gzip 1": {Layers: blob.Encoding{Compression: blob.Compression{Type: "gzip", Level: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			a := m.assemble(form)
			ar := Archive{Names: []string{"docker.io/library/app:v1", "docker.io/library/app:v2"}}
			var file bytes.Buffer
			if err := m.WriteOCI(t.Context(), &file, a, ar); err != nil {
				t.Fatal(err)
			}
			unpacked := t.TempDir()
			cmd := exec.Command("tar", "-x", "-C", unpacked)
			cmd.Stdin = bytes.NewReader(file.Bytes())
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			dir := filepath.Join(t.TempDir(), "new", "layout")
			if err := m.WriteOCIDir(t.Context(), dir, a, ar); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{unpacked, dir} {
				index, err := layout.ImageIndexFromPath(path)
				if err != nil {
					t.Fatal(err)
				}
				im, err := index.IndexManifest()
				if err != nil || len(im.Manifests) != 2 {
					t.Fatalf("%v, %v, want an entry for each name", im, err)
				}
				img, err := index.Image(im.Manifests[0].Digest)
				if err != nil {
					t.Fatal(err)
				}
				if err := kilntest.Validate(img); err != nil {
					t.Error(err)
				}
			}
			// The same image is the same file, also for a process that knows nothing of the first.
			m.reopen()
			var again bytes.Buffer
			if err := m.WriteOCI(t.Context(), &again, m.assemble(form), ar); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(file.Bytes(), again.Bytes()) {
				t.Error("the same image is another file")
			}
		})
	}
}

// TestMadeAnewIsTheSame: what is remembered of blobs only saves time.
func TestMadeAnewIsTheSame(t *testing.T) {
	m := newMade(t)
	want := m.assemble(gz).Desc
	root := m.Store.Root()
	notes := func() (paths []string) {
		for _, pattern := range []string{"layers/*/*", "compressed/*"} {
			found, err := filepath.Glob(filepath.Join(root, pattern))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range found {
				if name := filepath.Base(path); name != "fs" && name != "manifest" {
					paths = append(paths, path)
				}
			}
		}
		return paths
	}
	// By way of the tar that an output without compression has, it is the same bytes.
	for _, path := range notes() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(root, "blobs/sha256")), os.Mkdir(filepath.Join(root, "blobs/sha256"), 0o755)); err != nil {
		t.Fatal(err)
	}
	m.assemble(Form{Layers: blob.Encoding{Compression: blob.Uncompressed}})
	if got := m.assemble(gz).Desc; got.Digest != want.Digest {
		t.Errorf("blobs that were made again give %s, not %s", got.Digest, want.Digest)
	}
	all := notes()
	if len(all) < 2 {
		t.Fatalf("there is nothing to damage: %v", all)
	}
	for _, path := range all {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i <= len(whole); i += 7 {
			data := bytes.Clone(whole[:i])
			if i%2 == 0 && i < len(whole) {
				data = bytes.Clone(whole)
				data[i] ^= 1 << (i % 8)
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			m.reopen()
			if got := m.assemble(gz).Desc; got.Digest != want.Digest {
				t.Fatalf("%s, damaged at %d, gives another image", path, i)
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A configuration that nobody would read again is not written.
func TestLargeConfiguration(t *testing.T) {
	m := newMade(t)
	for _, c := range []struct {
		size    int
		refused bool
	}{{3 << 20, false}, {4 << 20, true}} {
		m.image.Config.Config.Labels = map[string]string{"a": strings.Repeat("x", c.size)}
		_, err := m.Assemble(t.Context(), []Image{m.image}, gz)
		if (err != nil) != c.refused || err != nil && !strings.Contains(err.Error(), "the limit is 4 MiB") {
			t.Errorf("%d bytes: error %v", c.size, err)
		}
	}
}

func TestDockerTar(t *testing.T) {
	m := newMade(t)
	path := filepath.Join(t.TempDir(), "image.tar")
	err := WriteFile(path, func(w io.Writer) error {
		return m.WriteOCI(t.Context(), w, m.assemble(gz), Archive{Names: []string{"docker.io/library/app:v1"}, DockerManifest: true})
	})
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

func TestTar(t *testing.T) {
	m := newMade(t)
	var a, b bytes.Buffer
	if err := errors.Join(WriteTar(t.Context(), &a, nil, Root{Tree: m.tree()}), WriteTar(t.Context(), &b, nil, Root{Tree: m.tree()})); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same files are another tar")
	}
	got := map[string]*tar.Header{}
	for tr := tar.NewReader(&a); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[strings.TrimSuffix(h.Name, "/")] = h
	}
	if h := got["bin/su"]; h == nil || h.Mode != 0o4755 || !h.ModTime.Equal(when) {
		t.Errorf("bin/su is %+v", h)
	}
	if h := got["closed"]; h == nil || h.Uid != 7 || h.Gid != 8 {
		t.Errorf("closed is %+v", h)
	}
	if got["gone"] != nil || len(got) != 7 {
		t.Errorf("the tar has %d entries", len(got))
	}
}

// TestFlippedByteIsNeverShipped changes a file of a layer on the disk: nothing that reads it may pass it on, and the layer
// is given up, so that it is made again.
func TestFlippedByteIsNeverShipped(t *testing.T) {
	for what, export := range map[string]func(m *made) error{
		"image": func(m *made) error {
			_, err := m.Assemble(m.t.Context(), []Image{m.image}, gz)
			return err
		},
		"tar": func(m *made) error { return WriteTar(m.t.Context(), io.Discard, nil, Root{Tree: m.tree()}) },
		"dir": func(m *made) error {
			_, err := WriteDir(m.t.Context(), m.t.TempDir(), m.tree(), DirOptions{})
			return err
		},
	} {
		for how, damage := range map[string]func(path string, data []byte) error{
			"flipped": func(path string, data []byte) error {
				data[len(data)/2] ^= 1
				return os.WriteFile(path, data, 0o644)
			},
			"cut":     func(path string, data []byte) error { return os.Truncate(path, int64(len(data)-1)) },
			"longer":  func(path string, data []byte) error { return os.WriteFile(path, append(data, 0), 0o644) },
			"gone":    func(path string, data []byte) error { return os.Remove(path) },
			"a link":  func(path string, data []byte) error { return errors.Join(os.Remove(path), os.Symlink("su", path)) },
			"a fifo":  func(path string, data []byte) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)) },
			"a block": func(path string, data []byte) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) },
		} {
			t.Run(what+" "+how, func(t *testing.T) {
				m := newMade(t)
				id := m.ids()[1]
				path := filepath.Join(m.Store.Root(), "layers", string(id), "fs", "closed", "inner")
				data, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := damage(path, data); err != nil {
					t.Fatal(err)
				}
				err = export(m)
				if d, ok := errors.AsType[*snapshot.DamagedError](err); !ok || d.Path != "closed/inner" || d.ID != id {
					t.Fatalf("the export says %v, want that the layer is damaged", err)
				}
				m.reopen()
				if err := m.layers.Open(t.Context(), id); err == nil {
					t.Error("the damaged layer is still in the store")
				}
			})
		}
	}
}

func TestDir(t *testing.T) {
	defer unix.Umask(unix.Umask(0o022))
	m := newMade(t)
	dir := filepath.Join(t.TempDir(), "a", "dest")
	for range 2 { // the second time over the first
		if dropped, err := WriteDir(t.Context(), dir, m.tree(), DirOptions{SetID: true}); err != nil || dropped != (Dropped{}) {
			t.Fatalf("%+v, %v", dropped, err)
		}
	}
	var st unix.Stat_t
	for path, want := range map[string]uint32{"": unix.S_IFDIR | 0o755, "bin/su": unix.S_IFREG | 0o4755, "closed": unix.S_IFDIR | 0o500, "pipe": unix.S_IFIFO | 0o600, "bin/link": unix.S_IFLNK | 0o777} {
		if err := unix.Lstat(filepath.Join(dir, path), &st); err != nil || st.Mode != want || path != "" && st.Mtim.Nano() != when.UnixNano() || int(st.Uid) != os.Getuid() {
			t.Errorf("%s: mode %o, owner %d, time %d, %v", path, st.Mode, st.Uid, st.Mtim.Nano(), err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "gone")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a deleted file is there: %v", err)
	}
}

// special makes an image with files that give the rights of their owner, and with devices.
func special(t *testing.T) *made {
	if os.Geteuid() != 0 {
		t.Fatal("run as root: this test makes devices")
	}
	m := newMade(t)
	m.layer(
		layer.Entry{Path: "closed", Type: layer.Dir, Mode: 0o500, UID: 7, GID: 8, ModTime: when},
		layer.Entry{Path: "closed/null", Type: layer.Char, Mode: 0o6666, Major: 1, Minor: 3, ModTime: when},
		layer.Entry{Path: "disk", Type: layer.Block, Mode: 0o600, Major: 8, ModTime: when},
		layer.Entry{Path: "disk2", Type: layer.Hardlink, Link: "disk"},
		layer.Entry{Path: "group", Type: layer.Dir, Mode: 0o2775, ModTime: when},
		layer.Entry{Path: "group/id", Type: layer.File, Mode: 0o2711, UID: 33, GID: 33, ModTime: when, Link: "set group id"},
	)
	return m
}

// TestDirDropsPrivileges shows that files in a directory give nobody the rights of the user, unless that was asked for.
func TestDirDropsPrivileges(t *testing.T) {
	m := special(t)
	for _, tc := range []struct {
		options DirOptions
		dropped Dropped
		modes   map[string]uint32
	}{
		{DirOptions{}, Dropped{SetID: 3, Devices: 3}, map[string]uint32{"bin/su": unix.S_IFREG | 0o755, "group": unix.S_IFDIR | 0o775,
			"group/id": unix.S_IFREG | 0o711, "closed/null": 0, "disk": 0, "disk2": 0}},
		{DirOptions{SetID: true}, Dropped{Devices: 3}, map[string]uint32{"bin/su": unix.S_IFREG | 0o4755, "group": unix.S_IFDIR | 0o2775,
			"group/id": unix.S_IFREG | 0o2711, "closed/null": 0, "disk": 0, "disk2": 0}},
		{DirOptions{Devices: true}, Dropped{SetID: 4}, map[string]uint32{"bin/su": unix.S_IFREG | 0o755,
			"closed/null": unix.S_IFCHR | 0o666, "disk": unix.S_IFBLK | 0o600, "disk2": unix.S_IFBLK | 0o600}},
	} {
		dir := t.TempDir()
		dropped, err := WriteDir(t.Context(), dir, m.tree(), tc.options)
		if err != nil || dropped != tc.dropped {
			t.Errorf("%+v: %+v, %v; want %+v", tc.options, dropped, err, tc.dropped)
		}
		for path, want := range tc.modes {
			var st unix.Stat_t
			err := unix.Lstat(filepath.Join(dir, path), &st)
			if want == 0 && err != unix.ENOENT || want != 0 && (err != nil || st.Mode != want) {
				t.Errorf("%+v: %s has mode %o, %v; want %o", tc.options, path, st.Mode, err, want)
			}
		}
	}
}

// opened is a tree that calls f before a file is opened.
type opened struct {
	layer.Tree
	f func(e *layer.Entry) error
}

func (o opened) Open(e *layer.Entry) (io.ReadCloser, error) {
	if err := o.f(e); err != nil {
		return nil, err
	}
	return o.Tree.Open(e)
}

// TestDirIsClosedUntilComplete shows that others see a directory that is made when everything is in it, or never.
func TestDirIsClosedUntilComplete(t *testing.T) {
	defer unix.Umask(unix.Umask(0o022))
	m := newMade(t)
	mode := func(path string) os.FileMode {
		info, err := os.Stat(path)
		if err != nil {
			t.Error(err)
			return 0
		}
		return info.Mode().Perm()
	}
	dir := filepath.Join(t.TempDir(), "dest")
	last := 0
	tree := opened{m.tree(), func(e *layer.Entry) error {
		last++
		if mode(dir) != 0o700 || mode(filepath.Join(dir, layer.Parent(e.Path))) != 0o700 {
			t.Errorf("at %s: modes %o and %o", e.Path, mode(dir), mode(filepath.Join(dir, layer.Parent(e.Path))))
		}
		return nil
	}}
	if _, err := WriteDir(t.Context(), dir, tree, DirOptions{}); err != nil || mode(dir) != 0o755 || mode(filepath.Join(dir, "bin")) != 0o755 {
		t.Errorf("%v, modes %o and %o", err, mode(dir), mode(filepath.Join(dir, "bin")))
	}
	boom := errors.New("boom")
	files := 0
	tree.f = func(e *layer.Entry) error {
		if files++; files == last {
			return boom
		}
		return nil
	}
	// One that was missing is so again, and of one that was there the user's own is left.
	missing, there := filepath.Join(t.TempDir(), "dest"), t.TempDir()
	if _, err := WriteDir(t.Context(), missing, tree, DirOptions{}); !errors.Is(err, boom) {
		t.Errorf("WriteDir = %v", err)
	}
	if _, err := os.Lstat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(there, "bin"), 0o711), os.WriteFile(filepath.Join(there, "bin", "mine"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	files = 0
	if _, err := WriteDir(t.Context(), there, tree, DirOptions{}); !errors.Is(err, boom) {
		t.Errorf("WriteDir = %v", err)
	}
	if _, err := os.Lstat(filepath.Join(there, "bin", "mine")); err != nil || mode(filepath.Join(there, "bin")) != 0o711 {
		t.Errorf("the user's file: %v; the mode of its directory is %o", err, mode(filepath.Join(there, "bin")))
	}
	if _, err := os.Lstat(filepath.Join(there, "closed")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that was made is still there: %v", err)
	}
}

// TestDirKeepsModes shows that nobody can enter a directory afterwards who could not before.
func TestDirKeepsModes(t *testing.T) {
	m := newMade(t)
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "bin"), 0o700), os.Mkdir(filepath.Join(dir, "closed"), 0o777), os.Chmod(dir, 0o710)); err != nil {
		t.Fatal(err)
	}
	before := map[string]os.FileMode{}
	for _, path := range []string{"", "bin", "closed"} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		before[path] = info.Mode()
	}
	if _, err := WriteDir(t.Context(), dir, m.tree(), DirOptions{}); err != nil {
		t.Fatal(err)
	}
	for path, mode := range before {
		if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode() != mode {
			t.Errorf("%q has mode %v, %v; it had %v", path, info.Mode(), err, mode)
		}
	}
}

// TestDirIsConfined exports into a directory in which somebody has laid out links to elsewhere.
func TestDirIsConfined(t *testing.T) {
	m := newMade(t)
	outside := t.TempDir()
	precious := filepath.Join(outside, "precious")
	if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, seed := range map[string]func(dir string) error{
		"a directory is a link": func(dir string) error { return os.Symlink(outside, filepath.Join(dir, "bin")) },
		"a file is a link": func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "closed"), 0o755), os.Symlink(precious, filepath.Join(dir, "closed", "inner")))
		},
		"a file is a hard link": func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "bin"), 0o755), os.Link(precious, filepath.Join(dir, "bin", "su")))
		},
		"a fifo is a link": func(dir string) error { return os.Symlink(precious, filepath.Join(dir, "pipe")) },
		"a link is a link": func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "bin"), 0o755), os.Symlink(outside, filepath.Join(dir, "bin", "link")))
		},
		"a directory is a dangling one": func(dir string) error { return os.Symlink(filepath.Join(outside, "new"), filepath.Join(dir, "closed")) },
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			if err := seed(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := WriteDir(t.Context(), dir, m.tree(), DirOptions{}); err != nil {
				t.Fatalf("what is in the way is replaced, but: %v", err)
			}
			if text, err := os.ReadFile(precious); err != nil || string(text) != "precious" {
				t.Errorf("a file outside is now %q, %v", text, err)
			}
			if list, _ := os.ReadDir(outside); len(list) != 1 {
				t.Errorf("there is something new outside: %v", list)
			}
			if info, err := os.Lstat(precious); err != nil || info.Mode() != 0o600 {
				t.Errorf("the file outside has mode %v, %v", info.Mode(), err)
			}
			if text, err := os.ReadFile(filepath.Join(dir, "bin/su")); err != nil || string(text) != "set user id" {
				t.Errorf("bin/su is %q, %v", text, err)
			}
		})
	}
}

// TestDirKeepsSpecialFiles shows that no device, named pipe or socket in the directory is replaced: as root that could be a device of the
// machine. Those that the image has itself may be there.
func TestDirKeepsSpecialFiles(t *testing.T) {
	m := special(t)
	for name, there := range map[string]uint32{
		"bin/su": unix.S_IFCHR, "bin/link": unix.S_IFSOCK, "closed": unix.S_IFIFO, "pipe": unix.S_IFCHR, "disk": unix.S_IFBLK, "disk2": unix.S_IFIFO,
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), unix.Mknod(path, there|0o600, int(unix.Mkdev(1, 3)))); err != nil {
			t.Fatal(err)
		}
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := WriteDir(t.Context(), dir, m.tree(), DirOptions{Devices: true}); err == nil || !strings.Contains(err.Error(), "which is not replaced") {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) || before.Mode() != after.Mode() {
			t.Errorf("%s was replaced: %v", name, err)
		}
	}
	dir := t.TempDir()
	for range 2 {
		if _, err := WriteDir(t.Context(), dir, m.tree(), DirOptions{Devices: true}); err != nil {
			t.Error(err)
		}
	}
}

// TestOCIDirMendsBlobs: a blob in the directory that only looks right is not left there.
func TestOCIDirMendsBlobs(t *testing.T) {
	m := newMade(t)
	a := m.assemble(gz)
	dir := t.TempDir()
	if err := m.WriteOCIDir(t.Context(), dir, a, Archive{}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, blobPath(a.Manifests[0].Manifest.Layers[1]))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.WriteOCIDir(t.Context(), dir, a, Archive{}); err != nil {
		t.Fatal(err)
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	boom := errors.New("boom")
	write := func(text string, err error) error {
		return WriteFile(path, func(w io.Writer) error {
			fmt.Fprint(w, text)
			return err
		})
	}
	if err := write("whole", nil); err != nil {
		t.Fatal(err)
	}
	// A write that fails leaves what was there, and nothing else.
	if err := write("half", boom); !errors.Is(err, boom) {
		t.Errorf("WriteFile = %v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "whole" {
		t.Errorf("the file is now %q", text)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	if err := WriteFile(dir, func(io.Writer) error { return nil }); err == nil || !strings.Contains(err.Error(), "directory") {
		t.Errorf("WriteFile to a directory = %v", err)
	}
	// A device is written to, and not replaced.
	if err := WriteFile(os.DevNull, func(w io.Writer) error { _, err := io.WriteString(w, "x"); return err }); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode().IsRegular() {
		t.Fatalf("%s is now %v, %v", os.DevNull, info.Mode(), err)
	}
}

func TestCancelled(t *testing.T) {
	m := newMade(t)
	cause := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := m.Assemble(ctx, []Image{m.image}, gz); !errors.Is(err, cause) {
		t.Errorf("Assemble = %v", err)
	}
	if err := WriteTar(ctx, io.Discard, nil, Root{Tree: m.tree()}); !errors.Is(err, cause) {
		t.Errorf("WriteTar = %v", err)
	}
	if _, err := WriteDir(ctx, t.TempDir(), m.tree(), DirOptions{}); !errors.Is(err, cause) {
		t.Errorf("WriteDir = %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(m.Store.Root(), "tmp")); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

// TestCompareEnds shows that comparing a file with a blob, and a blob with its digest, end with the context.
func TestCompareEnds(t *testing.T) {
	m := newMade(t)
	a := m.assemble(gz)
	dir := t.TempDir()
	if err := m.WriteOCIDir(t.Context(), dir, a, Archive{}); err != nil {
		t.Fatal(err)
	}
	d := a.Manifests[0].Manifest.Layers[1]
	sums, err := openDir(unix.AT_FDCWD, filepath.Join(dir, filepath.Dir(blobPath(d))), "")
	if err != nil {
		t.Fatal(err)
	}
	defer sums.Close()
	if !isBlob(t.Context(), sums, d, make([]byte, blockSize)) || isBlob(ctxtest.EndAfter(2), sums, d, make([]byte, 1)) {
		t.Error("a file is compared with a blob after the context has ended")
	}
	if err := m.WriteOCIDir(ctxtest.EndAfter(2), dir, a, Archive{}); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("WriteOCIDir = %v", err)
	}
}

// TestDirLooksUpItsPathOnce puts a link to a victim's directory in the place of a directory on the path to the export's, or of what the
// export made, before the export fails. Nothing of the victim's is removed or changed.
func TestDirLooksUpItsPathOnce(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name string
		// exists says that DIR, att/sub/out, exists before; moved is what is moved away then, to att/moved.
		exists bool
		moved  string
		// link says that a link takes the place, and else a directory of the victim's.
		link bool
		// succeed lets the export go on.
		succeed bool
		// left is what is still in att/moved afterwards.
		left string
	}{
		{name: "DIR", exists: true, moved: "sub/out", link: true, left: "mine"},
		{name: "the parent of DIR", exists: true, moved: "sub", link: true, left: "out/mine"},
		{name: "a new DIR", moved: "sub/out", link: true, left: "bin"},
		{name: "a new DIR by a directory", moved: "sub/out", left: "bin"},
		{name: "the parent of a new DIR", moved: "sub", link: true},
		{name: "a directory in DIR", exists: true, moved: "sub/out/bin", link: true, left: "su"},
		{name: "a directory in DIR by a directory", exists: true, moved: "sub/out/bin", left: "su"},
		{name: "a directory in DIR by a directory, and all goes well", exists: true, moved: "sub/out/bin", succeed: true, left: "su"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMade(t)
			tmp := t.TempDir()
			att, victim := filepath.Join(tmp, "att"), filepath.Join(tmp, "victim")
			dir, moved := filepath.Join(att, "sub/out"), filepath.Join(att, tc.moved)
			// Whatever the swapped name is, what lies below it by the old path is there for the victim.
			secrets := []string{"bin/secret", "closed/secret", "out/secret", "out/bin/secret"}
			for _, secret := range secrets {
				path := filepath.Join(victim, secret)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
				t.Fatal(err)
			}
			if tc.exists {
				if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			at := victim
			swapped := false
			tree := opened{Tree: m.tree()}
			tree.f = func(e *layer.Entry) error {
				if !strings.HasPrefix(e.Path, "closed/") {
					return nil
				}
				if !swapped {
					swapped = true
					if err := os.Rename(moved, filepath.Join(att, "moved")); err != nil {
						t.Error(err)
					}
					var err error
					if tc.link {
						err = os.Symlink(victim, moved)
					} else {
						err, at = os.Rename(victim, moved), moved
					}
					if err != nil {
						t.Error(err)
					}
				}
				if tc.succeed {
					return nil
				}
				return boom
			}
			_, err := WriteDir(t.Context(), dir, tree, DirOptions{})
			if !swapped || err == nil || !tc.succeed && !errors.Is(err, boom) {
				t.Errorf("WriteDir = %v", err)
			}
			for _, secret := range secrets {
				if info, err := os.Stat(filepath.Join(at, filepath.Dir(secret))); err != nil || info.Mode().Perm() != 0o700 {
					t.Errorf("the victim's directory of %s: %v, %v", secret, info, err)
				}
				if _, err := os.Stat(filepath.Join(at, secret)); err != nil {
					t.Errorf("the victim's file: %v", err)
				}
			}
			list, err := os.ReadDir(filepath.Join(att, "moved"))
			if err != nil {
				t.Fatal(err)
			}
			if tc.left == "" && len(list) != 0 {
				t.Errorf("left: %v", list)
			} else if _, err := os.Stat(filepath.Join(att, "moved", tc.left)); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(filepath.Join(att, "moved", "out", "bin")); tc.moved == "sub" && err == nil {
				t.Error("what was made is left where it was moved to")
			}
		})
	}
}

// TestFileLooksUpItsPathOnce has the directory of a file replaced by a link to another one while the file is written.
func TestFileLooksUpItsPathOnce(t *testing.T) {
	tmp := t.TempDir()
	dir, moved, victim := filepath.Join(tmp, "dir"), filepath.Join(tmp, "moved"), filepath.Join(tmp, "victim")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(victim, 0o755)); err != nil {
		t.Fatal(err)
	}
	err := WriteFile(filepath.Join(dir, "file"), func(w io.Writer) error {
		_, err := io.WriteString(w, "new")
		return errors.Join(err, os.Rename(dir, moved), os.Symlink(victim, dir))
	})
	if err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(filepath.Join(moved, "file")); err != nil || string(data) != "new" {
		t.Errorf("the file is %q, %v", data, err)
	}
	if list, err := os.ReadDir(victim); err != nil || len(list) != 0 {
		t.Errorf("the other directory holds %v, %v", list, err)
	}
}

// TestWriteFileToOpenOne: a link as /dev/stdout is one stays, whatever the output is.
func TestWriteFileToOpenOne(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	to, link := fmt.Sprintf("/proc/self/fd/%d", f.Fd()), filepath.Join(dir, "link")
	if err := os.Symlink(to, link); err != nil {
		t.Fatal(err)
	}
	err = WriteFile(link, func(w io.Writer) error {
		_, err := io.WriteString(w, "new")
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(f.Name()); err != nil || string(data) != "new" {
		t.Errorf("the file is %q, %v", data, err)
	}
	if now, err := os.Readlink(link); err != nil || now != to {
		t.Errorf("the link is %q, %v", now, err)
	}
}

// TestOCIDirIsConfined exports a layout into a directory whose own directories lead elsewhere.
func TestOCIDirIsConfined(t *testing.T) {
	m := newMade(t)
	a := m.assemble(gz)
	for _, link := range []string{"blobs", "blobs/sha256"} {
		dir, outside := t.TempDir(), t.TempDir()
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(link)), 0o755), os.Symlink(outside, filepath.Join(dir, link))); err != nil {
			t.Fatal(err)
		}
		if err := m.WriteOCIDir(t.Context(), dir, a, Archive{}); err == nil || !strings.Contains(err.Error(), link) {
			t.Errorf("error %v", err)
		}
		if list, err := os.ReadDir(outside); err != nil || len(list) != 0 {
			t.Errorf("%s: outside there is %v, %v", link, list, err)
		}
	}
}
