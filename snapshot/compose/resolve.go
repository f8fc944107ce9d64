package compose

import (
	"bytes"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
)

// maxLinks is how many symbolic links one path may lead through, as in path_resolution(7).
const maxLinks = 40

// Resolve returns the physical path that name stands for, following symbolic links inside the root, the last one only if
// followLast. What does not exist is taken as it is written. The entry is nil if there is nothing at the path.
func (b *Builder) Resolve(name string, followLast bool) (string, *layer.Entry, error) {
	return b.ResolveBelow("", name, followLast, nil)
}

// ResolveBelow is Resolve in a chroot in the directory at the physical path dir; the path that it returns is in the
// whole root. dangling, unless it is nil, is called for a symbolic link that name leads through and that leads to
// nothing, with its physical path, and gives the error.
func (b *Builder) ResolveBelow(
	dir, name string, followLast bool, dangling func(path string, link layer.Entry) error,
) (string, *layer.Entry, error) {
	top, err := b.directory(dir)
	if err != nil {
		return "", nil, err
	}
	if top == nil {
		return "", nil, &layer.PathError{Path: dir, Msg: "is not a directory"}
	}
	r := &resolving{steps: &nodeSteps{b: b, top: top, at: top}, path: []byte(dir), top: len(dir), dangling: dangling}
	return r.resolve(name, followLast)
}

// Resolve is path resolution as in a chroot over any look-up function of physical paths. What is not there has nothing below it.
func Resolve(lookup func(string) (layer.Entry, bool, error), name string, followLast bool) (string, *layer.Entry, error) {
	return (&resolving{steps: lookupSteps(lookup)}).resolve(name, followLast)
}

// steps are the steps of a path resolution. It is in one directory, at first in the root.
type steps interface {
	// down looks up a name in the directory. If that is a directory the resolution is in it from then on. path is the
	// physical path of the name.
	down(name string, path []byte) (e layer.Entry, ok bool, err error)
	// up goes to the directory above. It is not called in the root.
	up()
	// root goes to the root.
	root()
	// here returns the entry of the directory, whose physical path is path.
	here(path string) (layer.Entry, bool, error)
	// lookup looks up a physical path.
	lookup(path string) (layer.Entry, bool, error)
}

// lookupSteps are steps by a look-up function alone.
type lookupSteps func(string) (layer.Entry, bool, error)

func (f lookupSteps) down(_ string, path []byte) (layer.Entry, bool, error) { return f(string(path)) }
func (f lookupSteps) up()                                                   {}
func (f lookupSteps) root()                                                 {}
func (f lookupSteps) here(path string) (layer.Entry, bool, error)           { return f(path) }
func (f lookupSteps) lookup(path string) (layer.Entry, bool, error)         { return f(path) }

// nodeSteps are steps in a Builder. A step through a directory that the Builder knows takes time linear in the length of the name.
type nodeSteps struct {
	b       *Builder
	top, at *dirNode
}

func (s *nodeSteps) down(name string, path []byte) (layer.Entry, bool, error) {
	n, e, ok := s.b.dirs.child(s.at, name), layer.Entry{}, true
	if n == nil {
		var err error
		if s.b.ownLinks {
			e, ok, err = s.b.leafIn(s.at, name)
			ok = ok && e.Type != layer.Whiteout
		} else {
			n, e, ok, err = s.b.child(s.at, name, string(path))
		}
		if err != nil {
			return e, false, err
		}
	}
	if n != nil {
		s.at = n
		e = layer.Entry{Type: layer.Dir}
	}
	return e, ok, nil
}

func (s *nodeSteps) up()   { s.at = s.at.up }
func (s *nodeSteps) root() { s.at = s.top }

func (s *nodeSteps) here(path string) (layer.Entry, bool, error) {
	s.b.dirs.remember(path, s.at)
	return s.at.entry(path), true, nil
}

func (s *nodeSteps) lookup(path string) (layer.Entry, bool, error) { return s.b.Lookup(path) }

// resolving is the resolution of one path.
type resolving struct {
	steps
	path []byte // the physical path so far
	top  int    // how many bytes of it are the root's
	// beyond is how many components of it lie behind the last directory that is there: the first of them may be there, as something else.
	beyond int
	// found is what is at the path, if that was looked up and is no directory.
	found *layer.Entry
	// rest has what is still to be resolved: of the name itself first, then of each symbolic link that is being followed.
	rest  []string
	links int
	// outer is the symbolic link of the name itself that is being followed, and outerPath its path, for dangling.
	dangling  func(path string, link layer.Entry) error
	outer     layer.Entry
	outerPath string
}

func (r *resolving) resolve(name string, followLast bool) (string, *layer.Entry, error) {
	r.rest = append(r.rest, name)
	for len(r.rest) > 0 {
		last := len(r.rest) - 1
		if r.rest[last] == "" {
			if r.rest = r.rest[:last]; last == 1 && r.dangling != nil {
				if e, err := r.entry(); err != nil {
					return "", nil, err
				} else if e == nil {
					return "", nil, r.dangling(r.outerPath, r.outer)
				}
			}
			continue
		}
		var name string
		name, r.rest[last], _ = strings.Cut(r.rest[last], "/")
		if err := r.step(name, followLast); err != nil {
			return "", nil, err
		}
	}
	e, err := r.entry()
	return string(r.path), e, err
}

// step takes one component.
func (r *resolving) step(name string, followLast bool) error {
	switch name {
	case "", ".":
		return nil
	case "..":
		r.found = nil
		if r.beyond > 0 {
			r.beyond--
		} else if len(r.path) > r.top {
			r.up()
		}
		r.path = r.path[:max(r.top, bytes.LastIndexByte(r.path, '/'))]
		return nil
	}
	dir := len(r.path)
	if dir > 0 {
		r.path = append(r.path, '/')
	}
	r.path = append(r.path, name...)
	if len(r.path) >= layer.MaxPath {
		return &layer.PathError{Path: string(r.path), Msg: layer.PathTooLong}
	}
	if r.found = nil; r.beyond > 0 {
		r.beyond++
		return nil
	}
	e, ok, err := r.down(name, r.path)
	switch {
	case err != nil:
		return err
	case !ok:
		r.beyond = 1
	case e.Type == layer.Symlink && (followLast || !r.last()):
		return r.follow(e, dir)
	case e.Type != layer.Dir:
		found := e // for the other cases e need not be on the heap
		r.beyond, r.found = 1, &found
	}
	return nil
}

// follow goes where a symbolic link leads whose directory's path has dir bytes.
func (r *resolving) follow(e layer.Entry, dir int) error {
	if r.links++; r.links > maxLinks {
		return &layer.PathError{Path: string(r.path), Msg: "too many levels of symbolic links"}
	}
	if len(r.rest) == 1 {
		r.outer, r.outerPath = e, string(r.path)
	}
	r.path = r.path[:dir]
	if strings.HasPrefix(e.Link, "/") {
		r.path = r.path[:r.top]
		r.root()
	}
	r.rest = append(r.rest, e.Link)
	return nil
}

// last reports whether none of the components that are left names anything.
func (r *resolving) last() bool {
	for _, rest := range r.rest {
		for c := range strings.SplitSeq(rest, "/") {
			if c != "" && c != "." {
				return false
			}
		}
	}
	return true
}

// entry returns what is at the path; nil for nothing.
func (r *resolving) entry() (*layer.Entry, error) {
	if r.found != nil {
		return r.found, nil
	}
	look := r.here
	if r.beyond > 0 {
		look = r.lookup // a path may have ended in "..": what is left of it may be a file
	}
	e, ok, err := look(string(r.path))
	if err != nil || !ok {
		return nil, err
	}
	return &e, nil
}
