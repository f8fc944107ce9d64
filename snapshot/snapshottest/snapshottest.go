// Package snapshottest has the contract of snapshot.Layers as a test: every operation on every form that an implementation keeps layers in.
package snapshottest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// World is an empty place that keeps layers, with what a test does to it from outside. It fails the test that it was made for.
type World interface {
	// Make keeps a layer in the form that the world is for, and returns its ID. The entries are in the order of layer.Compare, and Body
	// has the bytes of files. Made again it takes the place of a damaged one.
	Make(content []File) layer.ID
	// Job begins a job, as in a process of its own.
	Job() snapshot.Layers
	// Root calls f with a directory in which the root file system of one layer is mounted.
	Root(id layer.ID, f func(dir string))
	// Verify returns what is damaged of a layer.
	Verify(id layer.ID) []string
	// Prune removes a layer that nobody holds, and reports whether it is gone.
	Prune(id layer.ID) bool
	// Restart makes the world one in which the machine was started again, after a crash that may have lost what was written.
	Restart()
	// Damage changes the bytes of a file of a layer where it is kept: in the files, if there are any, or else in the blob.
	Damage(id layer.ID, path string)
	// State describes all that the world keeps.
	State() string
}

// File is an entry with the bytes of a File.
type File struct {
	layer.Entry
	Body string
}

// Form is a form that an implementation keeps layers in.
type Form struct {
	Name string
	// New returns a world in which Make makes layers of the form.
	New func(t *testing.T) World
	// EntriesOnly says that such layers have a manifest and no carriers.
	EntriesOnly bool
	// Many is how many files a layer must have to get the form.
	Many int
}

func (f Form) content() []File { return Content(f.Many) }

// Content is a layer of directories, files, links and empty files, of n files more in a directory "many".
func Content(n int) []File {
	when := time.Unix(1700000000, 5000)
	var all []File
	add := func(e layer.Entry, body string) {
		e.ModTime = when
		if e.Type == layer.File {
			e.Size, e.Digest = int64(len(body)), sha256.Sum256([]byte(body))
		}
		all = append(all, File{e, body})
	}
	add(layer.Entry{Path: "dir", Type: layer.Dir, Mode: 0o750}, "")
	add(layer.Entry{Path: "dir/empty", Type: layer.File, Mode: 0o600}, "")
	add(layer.Entry{Path: "dir/file", Type: layer.File, Mode: 0o644}, "the bytes of a file\n")
	add(layer.Entry{Path: "dir/name", Type: layer.Hardlink, Link: "dir/file", Mode: 0o644}, "")
	add(layer.Entry{Path: "large", Type: layer.File, Mode: 0o755}, strings.Repeat("more than one block is read of this\n", 20000))
	add(layer.Entry{Path: "link", Type: layer.Symlink, Link: "dir/file", Mode: 0o777}, "")
	if n > 0 {
		add(layer.Entry{Path: "many", Type: layer.Dir, Mode: 0o755}, "")
	}
	for i := range n {
		add(layer.Entry{Path: fmt.Sprintf("many/%06d", i), Type: layer.File, Mode: 0o644}, fmt.Sprint(i))
	}
	return all
}

// Test runs every operation on every form.
func Test(t *testing.T, forms []Form) {
	for _, f := range forms {
		for name, test := range map[string]func(t *testing.T, f Form, w World){
			"manifest": testManifest, "files": testFiles, "blob": testBlob, "root": testRoot, "verify": testVerify, "prune": testPrune,
			"context": testContext, "restart": testRestart, "damage": testDamage, "close": testClose,
		} {
			t.Run(f.Name+"/"+name, func(t *testing.T) { test(t, f, f.New(t)) })
		}
	}
}

// begin begins a job that ends with the test.
func begin(t *testing.T, w World) snapshot.Layers {
	t.Helper()
	j := w.Job()
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}

// A manifest has the entries, and asking for it changes nothing. What does not exist is fs.ErrNotExist.
func testManifest(t *testing.T, f Form, w World) {
	content := f.content()
	id := w.Make(content)
	before := w.State()
	j := begin(t, w)
	m, err := j.Manifest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	for e := range m.All() {
		if i == len(content) || e.Path != content[i].Path || e.Type != content[i].Type ||
			e.Digest != content[i].Digest || e.Link != content[i].Link {
			t.Fatalf("entry %d is %+v", i, e)
		}
		i++
	}
	if i != len(content) {
		t.Errorf("there are %d entries, want %d", i, len(content))
	}
	for _, unknown := range []layer.ID{"", "..", "x/../../y", layer.ID(strings.Repeat("0", 64))} {
		if _, err := j.Manifest(t.Context(), unknown); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the manifest of %q: %v", unknown, err)
		}
		if err := j.Open(t.Context(), unknown); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("opening %q: %v", unknown, err)
		}
	}
	if after := w.State(); after != before {
		t.Errorf("asking has changed\n%s\nto\n%s", before, after)
	}
}

// carried reports whether layers of a form have carriers; if not, it has tested that whatever needs one fails.
func carried(t *testing.T, f Form, w World) bool {
	t.Helper()
	if !f.EntriesOnly {
		return true
	}
	id, j := w.Make(f.content()), begin(t, w)
	if err := j.Open(t.Context(), id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
	if _, err := j.Files(t.Context(), id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Files: %v", err)
	}
	if _, err := j.Blob(t.Context(), id, blob.Encoding{Compression: blob.Uncompressed}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Blob: %v", err)
	}
	return false
}

// Files have their bytes, whatever carried them before, and as often as they are asked for.
func testFiles(t *testing.T, f Form, w World) {
	if !carried(t, f, w) {
		return
	}
	content := f.content()
	id := w.Make(content)
	for range 2 {
		j := begin(t, w)
		if err := j.Open(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		files, err := j.Files(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range content {
			if c.Type != layer.File {
				continue
			}
			r, err := files.Open(&c.Entry)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			r.Close()
			if err != nil || string(data) != c.Body {
				t.Errorf("%s has %d bytes, %v", c.Path, len(data), err)
			}
			var copied bytes.Buffer
			if err := files.Copy(&copied, &c.Entry); err != nil || copied.String() != c.Body {
				t.Errorf("%s is copied as %d bytes, %v", c.Path, copied.Len(), err)
			}
		}
		if n, err := files.Names("dir/name"); n < 2 || err != nil {
			t.Errorf("the file with two names has %d, %v", n, err)
		}
	}
}

// tarOf returns the tar that a layer has in every form.
func tarOf(t *testing.T, content []File) []byte {
	t.Helper()
	var want bytes.Buffer
	if err := layer.WriteLayer(&want, Entries(content)); err != nil {
		t.Fatal(err)
	}
	return want.Bytes()
}

// Entries yields the entries of a layer with their bytes, for layer.WriteLayer.
func Entries(content []File) iter.Seq2[*layer.Entry, layer.Body] {
	return func(yield func(*layer.Entry, layer.Body) bool) {
		for i := range content {
			c := &content[i]
			body := func(w io.Writer) error {
				_, err := io.WriteString(w, c.Body)
				return err
			}
			if !yield(&c.Entry, body) {
				return
			}
		}
	}
}

// A blob has the digest of the tar of the entries, and is the same one whenever it is asked for.
func testBlob(t *testing.T, f Form, w World) {
	if !carried(t, f, w) {
		return
	}
	content := f.content()
	id := w.Make(content)
	want := fmt.Sprintf("sha256:%x", sha256.Sum256(tarOf(t, content)))
	digests := map[string]string{}
	for range 2 {
		j := begin(t, w)
		for _, c := range []blob.Compression{{Type: "gzip", Level: -1}, blob.Uncompressed, {Type: "zstd", Level: -1}} {
			b, err := j.Blob(t.Context(), id, blob.Encoding{Compression: c})
			if err != nil {
				t.Fatal(err)
			}
			if b.DiffID.String() != want {
				t.Errorf("%v: the diff id is %s, want %s", c, b.DiffID, want)
			}
			if d := b.Desc.Digest.String(); digests[c.Type] != "" && digests[c.Type] != d {
				t.Errorf("%v: the digest is %s, and was %s", c, d, digests[c.Type])
			} else {
				digests[c.Type] = d
			}
		}
	}
}

// A root shows the files.
func testRoot(t *testing.T, f Form, w World) {
	if f.EntriesOnly {
		return
	}
	content := f.content()
	id := w.Make(content)
	for range 2 {
		w.Root(id, func(dir string) {
			for _, c := range content {
				name := dir + "/" + c.Path
				info, err := os.Lstat(name)
				if err != nil {
					t.Error(err)
					continue
				}
				if c.Type != layer.Symlink && uint32(info.Mode().Perm()) != c.Mode {
					t.Errorf("%s has mode %v, want %o", c.Path, info.Mode(), c.Mode)
				}
				if !info.ModTime().Equal(c.ModTime) {
					t.Errorf("%s has time %v", c.Path, info.ModTime())
				}
				if data, err := os.ReadFile(name); c.Type == layer.File && (err != nil || string(data) != c.Body) {
					t.Errorf("%s has %d bytes, %v", c.Path, len(data), err)
				}
				if target, _ := os.Readlink(name); c.Type == layer.Symlink && target != c.Link {
					t.Errorf("%s leads to %s", c.Path, target)
				}
			}
		})
	}
}

// What was made is in order, also when the other carrier was made of it.
func testVerify(t *testing.T, f Form, w World) {
	id := w.Make(f.content())
	if found := w.Verify(id); len(found) > 0 {
		t.Errorf("damaged: %v", found)
	}
	if f.EntriesOnly {
		return
	}
	j := begin(t, w)
	if _, err := j.Files(t.Context(), id); err != nil {
		t.Error(err)
	}
	if found := w.Verify(id); len(found) > 0 {
		t.Errorf("with files damaged: %v", found)
	}
}

// A layer that a job holds is not pruned, whoever else lets it go; one that nobody holds is, and does not exist any more.
func testPrune(t *testing.T, f Form, w World) {
	id := w.Make(f.content())
	a, b := w.Job(), w.Job()
	for _, j := range []snapshot.Layers{a, b} {
		if _, err := j.Manifest(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if !f.EntriesOnly && w.Prune(id) {
		t.Error("a layer that a job holds was pruned")
	}
	m, err := b.Manifest(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := m.Lookup("dir/file"); !ok {
		t.Error("the manifest lost an entry")
	}
	if !f.EntriesOnly {
		if _, err := b.Files(t.Context(), id); err != nil {
			t.Errorf("files of a layer that is held: %v", err)
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if !w.Prune(id) {
		t.Error("a layer that nobody holds was not pruned")
	}
	j := begin(t, w)
	if _, err := j.Manifest(t.Context(), id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the manifest of a layer that was pruned: %v", err)
	}
	if again := w.Make(f.content()); again != id {
		t.Errorf("made again it is %s", again)
	}
	if _, err := j.Manifest(t.Context(), id); err != nil {
		t.Errorf("made again: %v", err)
	}
}

// A context that has ended is an error for who has it and for nobody else, also if they want the same at the same time.
func testContext(t *testing.T, f Form, w World) {
	cause := errors.New("the test is over")
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	id := w.Make(Content(3000))
	j := begin(t, w)
	if _, err := j.Manifest(ended, id); !errors.Is(err, cause) {
		t.Errorf("Manifest: %v", err)
	}
	if f.EntriesOnly {
		return
	}
	form := blob.Encoding{Compression: blob.Compression{Type: "gzip", Level: -1}}
	for name, op := range map[string]func(context.Context) error{
		"Open":  func(ctx context.Context) error { return j.Open(ctx, id) },
		"Files": func(ctx context.Context) error { _, err := j.Files(ctx, id); return err },
		"Blob":  func(ctx context.Context) error { _, err := j.Blob(ctx, id, form); return err },
	} {
		if err := op(ended); !errors.Is(err, cause) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var all sync.WaitGroup
	for range 8 {
		ctx, cancel := context.WithCancelCause(t.Context())
		all.Go(func() {
			if _, err := j.Blob(ctx, id, form); err != nil && !errors.Is(err, cause) {
				t.Errorf("one whose context ends: %v", err)
			}
		})
		all.Go(func() { cancel(cause) })
		all.Go(func() {
			if _, err := j.Blob(t.Context(), id, form); err != nil {
				t.Errorf("another one: %v", err)
			}
		})
	}
	all.Wait()
	if err := j.Open(t.Context(), id); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// After a restart of the machine a layer that is whole is used, and one that is damaged is not, until it is made again.
func testRestart(t *testing.T, f Form, w World) {
	if f.EntriesOnly {
		return
	}
	content := f.content()
	id := w.Make(content)
	w.Restart()
	j := begin(t, w)
	if err := j.Open(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	other := begin(t, w)
	if _, err := other.Files(t.Context(), id); err != nil {
		t.Errorf("compared before: %v", err)
	}
	w.Restart()
	w.Damage(id, "dir/file")
	j = begin(t, w)
	if err := j.Open(t.Context(), id); !errors.Is(err, layer.ErrDamaged) && !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a damaged layer is opened with %v", err)
	}
	if m, err := j.Manifest(t.Context(), id); err == nil && m.Entries != len(content) {
		t.Errorf("the manifest has %d entries", m.Entries)
	}
	if again := w.Make(content); again != id {
		t.Errorf("made again it is %s", again)
	}
	if _, err := j.Files(t.Context(), id); err != nil {
		t.Errorf("made again: %v", err)
	}
}

// A file with other bytes is a *snapshot.DamagedError for who reads it, the layer does not exist from then on, and it can be made again.
func testDamage(t *testing.T, f Form, w World) {
	if f.EntriesOnly {
		return
	}
	content := f.content()
	id := w.Make(content)
	w.Damage(id, "dir/file")
	if found := w.Verify(id); len(found) == 0 && f.Name != snapshot.BlobOnly.String() {
		t.Error("the damage is not found")
	}
	j := begin(t, w)
	files, err := j.Files(t.Context(), id)
	if err == nil {
		var file layer.Entry
		for _, c := range content {
			if c.Path == "dir/file" {
				file = c.Entry
			}
		}
		var r io.ReadCloser
		if r, err = files.Open(&file); err == nil {
			_, err = io.ReadAll(r)
			r.Close()
		}
	}
	if d, ok := errors.AsType[*snapshot.DamagedError](err); !ok || d.ID != id {
		t.Errorf("reading it: %v", err)
	}
	for _, j := range []snapshot.Layers{j, begin(t, w)} {
		if err := j.Open(t.Context(), id); !errors.Is(err, layer.ErrDamaged) && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the damaged layer is opened with %v", err)
		}
	}
	if again := w.Make(content); again != id {
		t.Errorf("made again it is %s", again)
	}
	if err := j.Open(t.Context(), id); err != nil {
		t.Errorf("made again: %v", err)
	}
}

// A job that is closed holds nothing.
func testClose(t *testing.T, f Form, w World) {
	id := w.Make(f.content())
	use := func() {
		j := w.Job()
		if _, err := j.Manifest(t.Context(), id); err != nil {
			t.Error(err)
		}
		if !f.EntriesOnly {
			if _, err := j.Files(t.Context(), id); err != nil {
				t.Error(err)
			}
			if _, err := j.Blob(t.Context(), id, blob.Encoding{Compression: blob.Uncompressed}); err != nil {
				t.Error(err)
			}
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}
	use()
	before := open(t)
	for range 20 {
		use()
	}
	if after := open(t); after > before {
		t.Errorf("the process has %d files open and mapped, and had %d", after, before)
	}
}

// open returns how many files the process has open or mapped.
func open(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds) + bytes.Count(maps, []byte("/manifest\n"))
}
