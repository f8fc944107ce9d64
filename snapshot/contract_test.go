package snapshot_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/snapshot/snapshottest"
)

// The store keeps what package snapshottest says of layers, in every form.
func TestContract(t *testing.T) {
	in := func(form snapshot.Form, make func(w *local, content []snapshottest.File) layer.ID) snapshottest.Form {
		f := snapshottest.Form{Name: form.String(), EntriesOnly: form == snapshot.EntriesOnly}
		if form == snapshot.Delta {
			f.Many = 1100
		}
		f.New = func(t *testing.T) snapshottest.World {
			if form == snapshot.NoWhiteouts {
				t.Setenv(mount.TestVariable, "copy")
			}
			w := &local{t: t, root: t.TempDir(), make: make, form: form}
			if err := os.Mkdir(w.tmp(), 0o700); err != nil {
				t.Fatal(err)
			}
			return w
		}
		return f
	}
	snapshottest.Test(t, []snapshottest.Form{
		in(snapshot.Whole, (*local).whole), in(snapshot.Delta, (*local).delta), in(snapshot.NoWhiteouts, (*local).whole),
		in(snapshot.BlobOnly, (*local).blobOnly), in(snapshot.EntriesOnly, (*local).entriesOnly),
	})
}

// local is a root directory.
type local struct {
	t    *testing.T
	root string
	form snapshot.Form
	make func(w *local, content []snapshottest.File) layer.ID
}

func (w *local) tmp() string { return filepath.Join(w.root, "tmp") }

func (w *local) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// process is a job with a store of its own.
type process struct {
	*snapshot.Job
	store *snapshot.Store
}

func (p process) Close() error { return errors.Join(p.Job.Close(), p.store.Close()) }

func (w *local) open() process {
	w.t.Helper()
	images, err := cas.Open(w.root)
	w.check(err)
	s, err := snapshot.Open(snapshot.Config{Root: w.root, Tmp: w.tmp(), Blobs: blob.Store{CAS: images}})
	w.check(err)
	return process{s.Job(), s}
}

// do calls f in a process of its own.
func (w *local) do(f func(p process)) {
	w.t.Helper()
	p := w.open()
	f(p)
	w.check(p.Close())
}

func (w *local) Job() snapshot.Layers { return w.open() }

func (w *local) Make(content []snapshottest.File) layer.ID {
	w.t.Helper()
	id := w.make(w, content)
	if form := w.formOf(id); form != w.form.String() {
		w.t.Fatalf("the layer is %s, want %v", form, w.form)
	}
	return id
}

// formOf tells the form of a layer by what is in its directory.
func (w *local) formOf(id layer.ID) string {
	names, err := os.ReadDir(filepath.Join(w.root, "layers", string(id)))
	if errors.Is(err, fs.ErrNotExist) {
		return "entries-only"
	}
	w.check(err)
	for _, n := range names {
		switch name := n.Name(); {
		case name == "fs":
			return "whole"
		case strings.HasPrefix(name, "fs.delta-"):
			return "delta"
		case name == "fs.no-whiteouts":
			return "no-whiteouts"
		}
	}
	return "blob-only"
}

// write commits a layer as a COPY would, as a delta of another unless that is "".
func (w *local) write(content []snapshottest.File, base layer.ID) (id layer.ID) {
	w.do(func(p process) {
		up, err := p.New()
		w.check(err)
		defer up.Close()
		if base != "" {
			up.Delta(w.t.Context(), base)
		}
		b := compose.New(layer.NewStack(nil), w.tmp(), time.Unix(1, 0), up.Writer())
		defer b.Close()
		for i := range content {
			c := &content[i]
			switch c.Type {
			case layer.Hardlink:
				err = b.Link(c.Entry, c.Link)
			case layer.File:
				err = b.Put(c.Entry, strings.NewReader(c.Body))
			default:
				err = b.Put(c.Entry, nil)
			}
			w.check(err)
		}
		w.check(b.Finish())
		c, err := up.Commit(w.t.Context(), b, "")
		w.check(err)
		id = c.ID
	})
	return id
}

func (w *local) whole(content []snapshottest.File) layer.ID { return w.write(content, "") }

func (w *local) delta(content []snapshottest.File) layer.ID {
	before := slices.Clone(content)
	for i := range before {
		if c := &before[i]; c.Path == "dir/file" {
			c.Body = "as it was"
			c.Size, c.Digest = int64(len(c.Body)), sha256.Sum256([]byte(c.Body))
		}
	}
	return w.write(content, w.write(before, ""))
}

func (w *local) tar(content []snapshottest.File) []byte {
	var b bytes.Buffer
	w.check(layer.WriteLayer(&b, snapshottest.Entries(content)))
	return b.Bytes()
}

func (w *local) blobOnly(content []snapshottest.File) (id layer.ID) {
	w.do(func(p process) {
		up, err := p.New()
		w.check(err)
		defer up.Close()
		m, err := up.Manifest()
		w.check(err)
		for i := range content {
			w.check(m.Add(&content[i].Entry))
		}
		sum, err := m.Close(time.Now())
		w.check(err)
		form := blob.Encoding{Compression: blob.Uncompressed}
		making, err := p.BeginBlob(w.t.Context(), id, form)
		w.check(err)
		defer making.Close()
		_, err = making.Write(w.tar(content))
		w.check(err)
		made, err := making.Commit()
		w.check(err)
		w.check(up.Pack(form, made))
		c, err := up.CommitWritten(w.t.Context(), sum, "")
		w.check(err)
		id = c.ID
	})
	return id
}

func (w *local) entriesOnly(content []snapshottest.File) layer.ID {
	tarball := w.tar(content)
	id := layer.ID(fmt.Sprintf("%x", sha256.Sum256(tarball)))
	w.do(func(p process) { w.check(p.Index(w.t.Context(), id, bytes.NewReader(tarball))) })
	return id
}

func (w *local) Root(id layer.ID, f func(dir string)) {
	w.do(func(p process) {
		root, err := p.Mount(w.t.Context(), []layer.ID{id}, nil, nil)
		w.check(err)
		f(fmt.Sprintf("/proc/self/fd/%d", root.Fd()))
		w.check(root.Close())
	})
}

func (w *local) Verify(id layer.ID) (damaged []string) {
	w.do(func(p process) {
		w.check(p.store.Verify(w.t.Context(), id, func(path, what string) { damaged = append(damaged, path+" "+what) }, func(int64) {}))
	})
	return damaged
}

func (w *local) Prune(id layer.ID) (gone bool) {
	w.do(func(p process) {
		layers, kind := p.store.Part(), part.Layer
		if w.form == snapshot.EntriesOnly {
			layers, kind = p.store.EntriesPart(), part.Entries
		}
		var err error
		gone, err = layers.Remove(part.Item{Kind: kind, ID: string(id)})
		w.check(err)
	})
	return gone
}

func (w *local) Restart() {
	dirs, err := filepath.Glob(filepath.Join(w.root, "layers", "*"))
	w.check(err)
	for _, dir := range dirs {
		w.check(os.WriteFile(filepath.Join(dir, "unsynced"), []byte("another boot"), 0o600))
	}
}

func (w *local) Damage(id layer.ID, path string) {
	files, err := filepath.Glob(filepath.Join(w.root, "layers", string(id), "fs*", path))
	w.check(err)
	if len(files) == 0 {
		files, err = filepath.Glob(filepath.Join(w.root, "blobs", "sha256", "*"))
		w.check(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		w.check(err)
		// In place, as a disk does it.
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		w.check(err)
		_, err = f.Write(bytes.Replace(data, []byte("the bytes of"), []byte("other bytes "), 1))
		w.check(errors.Join(err, f.Close()))
	}
}

func (w *local) State() string {
	var b strings.Builder
	w.check(filepath.WalkDir(w.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == w.root || path == w.tmp() {
			return err // their times change when something is made in tmp
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime())
		}
		return err
	}))
	return b.String()
}
