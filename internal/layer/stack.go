package layer

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Part is a layer of a Stack.
type Part struct {
	ID ID
	*Manifest
	// Files returns the layer's files. It is nil if only the manifest exists.
	Files func() (Files, error)
}

// Files are the files of one layer.
type Files interface {
	// Open opens a File of the layer itself. The reader returns io.EOF only if the bytes match the entry.
	Open(e *Entry) (io.ReadCloser, error)
	// Copy writes the bytes of a File to w. If they do not match the entry it fails; the bytes written to w by then are wrong.
	Copy(w io.Writer, e *Entry) error
	// Names returns the number of links of the File at a path on disk.
	Names(path string) (int, error)
}

// Stack is the root file system made of several layers, read from their manifests without mounting anything. It implements Tree.
type Stack struct {
	parts []Part // uppermost first
}

// NewStack returns the root file system made of parts, lowest first.
func NewStack(parts []Part) *Stack {
	s := &Stack{parts: slices.Clone(parts)}
	slices.Reverse(s.parts)
	return s
}

// Written returns the latest time at which a layer was written: see Manifest.Written.
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

// find returns the entry and the index of its layer.
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
		return Root(), -1, true
	}
	return Entry{}, 0, false
}

// file gives an entry that may be one of several names of a file the file's attributes and LinkID.
func (l Part) file(e Entry) Entry {
	switch e.Type {
	case File:
		e.LinkID = string(l.ID) + "/" + e.Path
	case Hardlink:
		first, ok := l.Manifest.Lookup(e.Link)
		if !ok {
			return e // not written by a Writer; Open fails
		}
		name := e.Path
		e = l.file(first)
		e.Path = name
	}
	return e
}

// hides reports whether a layer without an entry for p hides p in lower layers.
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

// Sum implements Tree. Manifests contain all digests.
func (s *Stack) Sum(ctx context.Context, entries []*Entry) error { return nil }

// Open implements Tree. The reader returns io.EOF only if the bytes match the manifest.
func (s *Stack) Open(e *Entry) (io.ReadCloser, error) {
	entry, i, ok := s.find(e.Path)
	if !ok || i < 0 {
		return nil, &FileError{Op: "open", Path: e.Path, Err: unix.ENOENT}
	}
	files, err := s.files(i, e.Path)
	if err != nil {
		return nil, err
	}
	return files.Open(&entry)
}

// files returns the files of layer i. path is for the error.
func (s *Stack) files(i int, path string) (Files, error) {
	if s.parts[i].Files == nil {
		return nil, &FileError{Op: "open", Path: path, Err: errors.New("only the manifest of the layer exists")}
	}
	return s.parts[i].Files()
}

// Visible yields the entries, as returned by Lookup, of the layers for whose manifests with returns true, except those that upper
// layers hide.
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

// Names returns the number of links of the File at a path on disk, or 0 if it does not exist.
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
