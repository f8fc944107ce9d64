package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// Tree is the root file system that layers make together, read from their manifests: nothing is mounted.
type Tree struct {
	store  *Store
	layers []treeLayer // uppermost first
}

type treeLayer struct {
	id       string
	manifest *layer.Manifest
}

// Tree returns the root file system of these layers, the lowest first. Files of those that were only indexed cannot be opened.
func (s *Store) Tree(ids []string) (*Tree, error) {
	t := &Tree{store: s}
	for _, id := range slices.Backward(ids) {
		m, err := s.entries(id)
		if err != nil {
			return nil, err
		}
		t.layers = append(t.layers, treeLayer{id, m})
	}
	return t, nil
}

// Layer is a layer as its manifest.
type Layer struct {
	ID string
	*layer.Manifest
}

// View returns the root file system of these layers, the lowest first. Its files cannot be opened.
func View(layers []Layer) *Tree {
	t := &Tree{}
	for _, l := range slices.Backward(layers) {
		t.layers = append(t.layers, treeLayer{l.ID, l.Manifest})
	}
	return t
}

// Lookup implements layer.Tree.
func (t *Tree) Lookup(p string) (layer.Entry, bool, error) {
	e, _, ok := t.find(p)
	return e, ok, nil
}

// find returns the entry and the number of its layer.
func (t *Tree) find(p string) (layer.Entry, int, bool) {
	var implied *layer.Entry
	at := 0
	for i, l := range t.layers {
		if e, ok := l.manifest.Lookup(p); ok {
			if e.Type == layer.Whiteout {
				break
			}
			if !e.Implied {
				if implied != nil && e.Type != layer.Dir {
					break
				}
				return l.file(e), i, true
			}
			if implied == nil {
				implied, at = &e, i
			}
			if e.Opaque || l.manifest.OpaqueAbove(p) {
				break
			}
			continue
		}
		if l.hides(p) {
			break
		}
	}
	if implied != nil {
		return *implied, at, true
	}
	if p == "" {
		return layer.Entry{Type: layer.Dir, Mode: 0o755}, -1, true
	}
	return layer.Entry{}, 0, false
}

// file gives a name of a file that may have others the file's attributes and its identity.
func (l treeLayer) file(e layer.Entry) layer.Entry {
	switch e.Type {
	case layer.File:
		e.LinkID = l.id + "/" + e.Path
	case layer.Hardlink:
		first, ok := l.manifest.Lookup(e.Link)
		if !ok {
			return e // no writer makes such a manifest; Open will say so
		}
		name := e.Path
		e = l.file(first)
		e.Path = name
	}
	return e
}

// hides reports whether a layer that has no entry for p keeps lower layers' p from being seen.
func (l treeLayer) hides(p string) bool {
	above, ok := l.manifest.Above(p)
	return ok && (above.Type != layer.Dir || above.Opaque || l.manifest.OpaqueAbove(above.Path))
}

// List implements layer.Tree.
func (t *Tree) List(dir string) ([]layer.Entry, error) {
	var out []layer.Entry
	seen := map[string]bool{}
	for _, l := range t.layers {
		own, ok := l.manifest.Lookup(dir)
		if ok && own.Type != layer.Dir {
			break
		}
		for e := range l.manifest.List(dir) {
			if seen[e.Path] {
				continue
			}
			seen[e.Path] = true
			if e.Type == layer.Whiteout {
				continue
			}
			if e.Implied {
				e, _, _ = t.find(e.Path)
			}
			out = append(out, l.file(e))
		}
		if ok && (own.Opaque || l.manifest.OpaqueAbove(dir)) || !ok && l.hides(dir) {
			break
		}
	}
	slices.SortFunc(out, func(a, b layer.Entry) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// Sum implements layer.Tree: manifests have every digest already.
func (t *Tree) Sum(ctx context.Context, entries []*layer.Entry) error { return nil }

// Open implements layer.Tree. The reader ends in io.EOF only if the bytes are those that the manifest speaks of, else with
// a *DamagedError.
func (t *Tree) Open(e *layer.Entry) (io.ReadCloser, error) {
	entry, i, ok := t.find(e.Path)
	if !ok || i < 0 {
		return nil, &os.PathError{Op: "open", Path: e.Path, Err: unix.ENOENT}
	}
	if t.store == nil {
		return nil, &os.PathError{Op: "open", Path: e.Path, Err: errors.New("only the layer's manifest is there")}
	}
	files, err := t.filesOf(i)
	if err != nil {
		return nil, err
	}
	at := files.at(e.Path)
	id := at.id
	f, err := at.root.OpenNoSymlinks(e.Path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, t.store.damaged(id, entry.Path)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != entry.Size) {
		err = t.store.damaged(id, entry.Path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &verifiedFile{ReadCloser: f, hash: sha256.New(), store: t.store, id: id, entry: entry}, nil
}

// filesOf returns the files of the layer number i.
func (t *Tree) filesOf(i int) (*layerFiles, error) {
	id, err := t.store.unpacked(t.layers[i].id)
	if err != nil {
		return nil, err
	}
	return t.store.filesOf(id, t.layers[i].manifest)
}

// verifiedFile is a file of a layer that is compared with the manifest while it is read. It has no method of the file's
// that would read past the comparison.
type verifiedFile struct {
	io.ReadCloser
	hash  hash.Hash
	store *Store
	id    string
	entry layer.Entry
}

func (v *verifiedFile) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	v.hash.Write(p[:n])
	if err == io.EOF && layer.Digest(v.hash.Sum(nil)) != v.entry.Digest {
		err = v.store.damaged(v.id, v.entry.Path)
	}
	return n, err
}

// DamagedError is a file of a layer that is not what it was when the layer was made. The layer has been given up: it is in
// the store no more, and whoever needs it makes it again.
type DamagedError struct {
	ID   string
	Path string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("/%s of layer %.12s is not what it was when the layer was made: the disk, or a program that is not kiln, has changed it; the layer is given up, and the next build makes it again", e.Path, e.ID)
}

// damaged gives a layer up. Its files stay until it is made again, since steps that run may have them mounted.
func (s *Store) damaged(id, path string) error {
	s.mu.Lock()
	delete(s.manifests, id)
	for other, m := range s.manifests {
		if s.under(other, m) == id {
			delete(s.manifests, other)
		}
	}
	clear(s.files)
	clear(s.roots) // readers may still use them, so they are left to the end of the process
	s.mu.Unlock()
	err := &DamagedError{ID: id, Path: path}
	if rm := os.Remove(filepath.Join(s.dir, id, "manifest")); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
		return errors.Join(err, rm)
	}
	return err
}
