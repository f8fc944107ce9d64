package layer

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Part is a layer of a Stack.
type Part struct {
	ID ID
	*Manifest
	// Files returns the layer's files; nil where only the manifest is there.
	Files func() (Files, error)
}

// Files are the files of one layer.
type Files interface {
	// Open opens a File that the layer itself has. The reader ends in io.EOF only if the bytes are those of the entry.
	Open(e *Entry) (io.ReadCloser, error)
	// Copy writes the bytes of a File to w. If they are not those of the entry it fails, and what w got by then is wrong.
	Copy(w io.Writer, e *Entry) error
	// Names returns how many names the File at a path has on disk.
	Names(path string) (int, error)
}

// Stack is the root file system that layers make together, read from their manifests: nothing is mounted. It implements Tree.
type Stack struct {
	parts []Part // uppermost first
}

// NewStack returns the root file system of these layers, the lowest first.
func NewStack(parts []Part) *Stack {
	s := &Stack{parts: slices.Clone(parts)}
	slices.Reverse(s.parts)
	return s
}

// Written returns when the last of the layers was written: see Manifest.Written.
func (s *Stack) Written() (last time.Time) {
	for _, p := range s.parts {
		if at := p.Manifest.Written(); at.After(last) {
			last = at
		}
	}
	return last
}

// Lookup implements Tree.
func (s *Stack) Lookup(p string) (Entry, bool, error) {
	e, _, ok := s.find(p)
	return e, ok, nil
}

// find returns the entry and the number of its layer.
func (s *Stack) find(p string) (Entry, int, bool) {
	var implied *Entry
	at := 0
	for i, l := range s.parts {
		if e, ok := l.Manifest.Lookup(p); ok {
			if e.Type == Whiteout {
				break
			}
			if !e.Implied {
				if implied != nil && e.Type != Dir {
					break
				}
				return l.file(e), i, true
			}
			if implied == nil {
				implied, at = &e, i
			}
			if e.Opaque || l.OpaqueAbove(p) {
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
		return Entry{Type: Dir, Mode: 0o755}, -1, true
	}
	return Entry{}, 0, false
}

// file gives a name of a file that may have others the file's attributes and its identity.
func (l Part) file(e Entry) Entry {
	switch e.Type {
	case File:
		e.LinkID = string(l.ID) + "/" + e.Path
	case Hardlink:
		first, ok := l.Manifest.Lookup(e.Link)
		if !ok {
			return e // no Writer makes such a manifest; Open fails
		}
		name := e.Path
		e = l.file(first)
		e.Path = name
	}
	return e
}

// hides reports whether a layer that has no entry for p hides p of the layers below.
func (l Part) hides(p string) bool {
	above, ok := l.Above(p)
	return ok && (above.Type != Dir || above.Opaque || l.OpaqueAbove(above.Path))
}

// List implements Tree.
func (s *Stack) List(dir string) ([]Entry, error) {
	var out []Entry
	seen := map[string]bool{}
	for _, l := range s.parts {
		own, ok := l.Manifest.Lookup(dir)
		if ok && own.Type != Dir {
			break
		}
		for e := range l.Manifest.List(dir) {
			if seen[e.Path] {
				continue
			}
			seen[e.Path] = true
			if e.Type == Whiteout {
				continue
			}
			if e.Implied {
				e, _, _ = s.find(e.Path)
			}
			out = append(out, l.file(e))
		}
		if ok && (own.Opaque || l.OpaqueAbove(dir)) || !ok && l.hides(dir) {
			break
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// Sum implements Tree: manifests have every digest.
func (s *Stack) Sum(ctx context.Context, entries []*Entry) error { return nil }

// Open implements Tree. The reader ends in io.EOF only if the bytes are those of the manifest.
func (s *Stack) Open(e *Entry) (io.ReadCloser, error) {
	entry, i, ok := s.find(e.Path)
	if !ok || i < 0 {
		return nil, &os.PathError{Op: "open", Path: e.Path, Err: unix.ENOENT}
	}
	files, err := s.files(i, e.Path)
	if err != nil {
		return nil, err
	}
	return files.Open(&entry)
}

// files returns the files of layer number i, for the sake of a path.
func (s *Stack) files(i int, path string) (Files, error) {
	if s.parts[i].Files == nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: errors.New("only the layer's manifest is there")}
	}
	return s.parts[i].Files()
}

// Visible yields the entries, as Lookup has them, of those layers for whose manifests with returns true, without the entries that layers
// above hide.
func (s *Stack) Visible(with func(*Manifest) bool) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i, l := range s.parts {
			if !with(l.Manifest) {
				continue
			}
			for e := range l.All() {
				if found, at, ok := s.find(e.Path); ok && at == i && !yield(found) {
					return
				}
			}
		}
	}
}

// Names returns how many names the File at a path has on disk; 0 if there is none.
func (s *Stack) Names(path string) (int, error) {
	_, i, ok := s.find(path)
	if !ok || i < 0 {
		return 0, nil
	}
	files, err := s.files(i, path)
	if err != nil {
		return 0, err
	}
	return files.Names(path)
}
