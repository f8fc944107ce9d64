package snapshot

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
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

// Tree returns the root file system of these committed layers, the lowest first.
func (s *Store) Tree(ids []string) (*Tree, error) {
	t := &Tree{store: s}
	for _, id := range slices.Backward(ids) {
		m, err := s.Manifest(id)
		if err != nil {
			return nil, err
		}
		t.layers = append(t.layers, treeLayer{id, m})
	}
	return t, nil
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
			if e.Opaque || opaqueAbove(l.manifest, p) {
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
	for dir := p; dir != ""; {
		dir = layer.Parent(dir)
		if e, ok := l.manifest.Lookup(dir); ok {
			// The manifest has every parent of what it has, so nothing above this one is without it.
			return e.Type != layer.Dir || e.Opaque || opaqueAbove(l.manifest, dir)
		}
	}
	return false
}

func opaqueAbove(m *layer.Manifest, dir string) bool {
	for dir != "" {
		dir = layer.Parent(dir)
		if e, ok := m.Lookup(dir); ok && e.Opaque {
			return true
		}
	}
	return false
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
		if ok && (own.Opaque || opaqueAbove(l.manifest, dir)) || !ok && l.hides(dir) {
			break
		}
	}
	slices.SortFunc(out, func(a, b layer.Entry) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// Sum implements layer.Tree: manifests have every digest already.
func (t *Tree) Sum(ctx context.Context, entries []*layer.Entry) error { return nil }

// Open implements layer.Tree.
func (t *Tree) Open(e *layer.Entry) (io.ReadCloser, error) {
	_, i, ok := t.find(e.Path)
	if !ok || i < 0 {
		return nil, &os.PathError{Op: "open", Path: e.Path, Err: unix.ENOENT}
	}
	root, err := rootfs.Open(t.store.fsDir(t.layers[i].id))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenNoSymlinks(e.Path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open /%s in layer %s: the manifest has a file, the disk has not", e.Path, t.layers[i].id)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
