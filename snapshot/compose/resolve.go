package compose

import (
	"bytes"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
)

// maxLinks is the maximum number of symbolic links followed in one path, as in path_resolution(7).
const maxLinks = 40

// Resolve returns the physical path of name. It follows symbolic links inside the root, in the last component only if followLast
// is set. Components that do not exist are used as written. The entry is nil if the path does not exist.
func (b *Builder) Resolve(name string, followLast bool) (string, *layer.Entry, error) {
	return b.ResolveBelow("", name, followLast, nil)
}

// ResolveBelow is like Resolve in a chroot at the physical path dir; the returned path is relative to the whole root. If dangling
// is not nil, it is called with the physical path of each symbolic link in name whose target does not exist, and its error is
// returned.
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

// Resolve resolves a path as in a chroot, using any function that looks up physical paths. A path that does not exist has no
// contents.
func Resolve(lookup func(string) (layer.Entry, bool, error), name string, followLast bool) (string, *layer.Entry, error) {
	return (&resolving{steps: lookupSteps(lookup)}).resolve(name, followLast)
}

// steps performs the lookups of a path resolution. It has a current directory, which is initially the root.
type steps interface {
	// down looks up a name, whose physical path is path, in the current directory. If the name is a directory, it becomes the
	// current directory.
	down(name string, path []byte) (e layer.Entry, ok bool, err error)
	// up changes to the parent directory. It is not called in the root.
	up()
	// root changes to the root.
	root()
	// here returns the entry of the current directory, whose physical path is path.
	here(path string) (layer.Entry, bool, error)
	// lookup looks up a physical path.
	lookup(path string) (layer.Entry, bool, error)
}

// lookupSteps implements steps with a lookup function.
type lookupSteps func(string) (layer.Entry, bool, error)

func (f lookupSteps) down(_ string, path []byte) (layer.Entry, bool, error) { return f(string(path)) }
func (f lookupSteps) up()                                                   {}
func (f lookupSteps) root()                                                 {}
func (f lookupSteps) here(path string) (layer.Entry, bool, error)           { return f(path) }
func (f lookupSteps) lookup(path string) (layer.Entry, bool, error)         { return f(path) }

// nodeSteps implements steps for a Builder. A step through a directory that the Builder knows takes time linear in the length of
// the name.
type nodeSteps struct {
	b       *Builder
	top, at *dirNode
}

func (s *nodeSteps) down(name string, path []byte) (layer.Entry, bool, error) {
	n, e, ok := s.b.dirs.child(s.at, name), layer.Entry{}, true
	if n == nil {
		var err error
		if s.b.ofImage {
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
	path []byte // the resolved physical path
	top  int    // length of the part of path that is the root
	// beyond is the number of components of path after the last directory that exists. The first of them may exist as something
	// other than a directory.
	beyond int
	// found is the entry at path, if it was looked up and is not a directory.
	found *layer.Entry
	// rest is a stack of what remains to be resolved: first the rest of the name itself, then that of each symbolic link being
	// followed.
	rest  []string
	links int
	// outer is the symbolic link in the name itself that is being followed, and outerPath its path, for dangling.
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

// step resolves one component.
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

// follow follows a symbolic link in a directory whose path has length dir.
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

// last reports whether the remaining components consist only of empty names and ".".
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

// entry returns the entry at the resolved path, or nil if it does not exist.
func (r *resolving) entry() (*layer.Entry, error) {
	if r.found != nil {
		return r.found, nil
	}
	look := r.here
	if r.beyond > 0 {
		look = r.lookup // after "..", the remaining path may be a file
	}
	e, ok, err := look(string(r.path))
	if err != nil || !ok {
		return nil, err
	}
	return &e, nil
}
