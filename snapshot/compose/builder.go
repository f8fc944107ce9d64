// Package compose composes a layer from entries that are put one after the other: from an archive, or copied from other trees. It does not
// know where layers are kept.
package compose

import (
	"crypto/sha256"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
)

// Writer writes what a Builder composes. *dir.Writer is one. The errors are the caller's.
type Writer interface {
	// Put writes an entry where there is nothing yet, in a directory that was put before. For a File it reads body to its end and sets
	// the entry's Size and Digest.
	Put(e *layer.Entry, body io.Reader) error
	// SetDir changes the attributes of a directory that was put before.
	SetDir(e *layer.Entry) error
	// Remove removes a path that was put before, with everything below it.
	Remove(path string) error
	// Finish ends the writing. dirs yields the directories in the order of layer.Compare, and whether the layer keeps each of them: a
	// directory that it does not keep has nothing in it that it keeps.
	Finish(dirs iter.Seq2[*layer.Entry, bool]) error
	// Close frees what the writer holds. It may be called more than once.
	Close()
}

// Builder composes one layer over a root file system that it can read: paths are resolved as they would be if the layer were already in
// place. With a Writer files are written as they come; without one it only works out the layer's entries. Memory holds the layer's
// directories, and those below it that paths lead through. An operation takes time that is linear in the length of its path. A Builder is
// not safe for concurrent use.
type Builder struct {
	parent layer.Tree // nil: unknown
	dirs   dirTree
	most   int // how many directories there may be; 0 for any number
	kept   int // bytes of the directories' extended attributes so far
	leaves *spill
	links  int    // how many files have several names
	to     Writer // nil: nothing is written
	now    time.Time
	// stream, where not nil, takes the entries as they come: see Stream. held are directories that it, or who asks for Entries, has not
	// got yet.
	stream func(*layer.Entry) error
	held   []heldDir
	trim   bool // see Trim
	// ownLinks has paths lead through the layer's own symbolic links alone.
	ownLinks bool
	buf      []byte      // to read files with; nil until there is one
	passed   layer.Entry // the last one that was passed on: one place for all of them
}

// maxKept bounds the extended attributes of an archive's directories, in bytes: they are in memory until the layer is complete.
const maxKept = 64 << 20

// heldDir is a directory with its path.
type heldDir struct {
	*dirNode
	path string
}

// set puts an entry in the layer, whose parent directory is there, in the place of that of the same path and type.
func (b *Builder) set(e *layer.Entry, alone bool) error {
	if e.Type != layer.Dir {
		if n := b.dirs.find(e.Path); n != nil && n != b.dirs.top {
			b.dirs.remove(n) // one below the layer, which this hides
		}
		if b.stream != nil {
			return b.pass(e)
		}
		return b.setLeaf(&leaf{Entry: *e})
	}
	n := b.dirs.own(e.Path, true)
	if n == nil {
		return fmt.Errorf("BUG: %q is put in no directory", e.Path)
	}
	for _, x := range e.Xattrs {
		b.kept += len(x.Name) + len(x.Value)
	}
	if b.most > 0 && b.kept > maxKept {
		return &layer.LimitError{Msg: fmt.Sprintf("the archive's directories have more than %d MiB of extended attributes", maxKept>>20)}
	}
	n.Entry = *e
	n.Path = ""
	if alone {
		b.dirs.hide(n)
	}
	if b.stream != nil && !n.held {
		b.held = append(b.held, heldDir{n, e.Path})
		n.held = true
	}
	return nil
}

func (b *Builder) setLeaf(e *leaf) error {
	e.in = b.number(e.Path)
	return b.leaves.put(e)
}

// number returns that of the directory that a path is in.
func (b *Builder) number(path string) int {
	if up := b.dirs.find(layer.Parent(path)); up != nil {
		return up.number
	}
	return noDirectory
}

// leafIn returns the layer's own entry of a name in a directory if that is no directory. A stream keeps none.
func (b *Builder) leafIn(n *dirNode, name string) (layer.Entry, bool, error) {
	if b.stream != nil {
		return layer.Entry{}, false, nil
	}
	e, ok, err := b.leaves.get(n.number, name)
	return e.Entry, ok, err
}

// leaf is leafIn for a path.
func (b *Builder) leaf(p string) (leaf, bool, error) {
	if b.stream != nil {
		return leaf{}, false, nil
	}
	return b.leaves.get(b.number(p), base(p))
}

// base returns the last component of a path.
func base(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

// live reports whether an entry is part of the layer still.
func (b *Builder) live(e *leaf) bool { return !b.dirs.dead[e.in] }

// own returns the layer's own entry of a path.
func (b *Builder) own(p string) (layer.Entry, bool, error) {
	if n := b.dirs.own(p, false); n != nil {
		return n.entry(p), true, nil
	}
	e, ok, err := b.leaf(p)
	return e.Entry, ok, err
}

// New returns a Builder over parent. A nil parent is for the layer of an image, whose entries may be in directories that only lower
// layers name: such directories are made, and marked Implied. A nil Writer writes nothing. tmp is a directory for entries that do not fit
// into memory. Directories that the caller does not put get the time now. Close must be called; it closes the Writer too.
func New(parent layer.Tree, tmp string, now time.Time, to Writer) *Builder {
	return &Builder{parent: parent, to: to, dirs: newDirTree(), leaves: newSpill(tmp), now: now}
}

// Stream makes the builder pass its entries on to f, in the order of layer.Compare, instead of keeping them: nothing is
// kept but the directories. From then on entries must be put in that order, each path once, but for a directory, which
// may be put again before anything is put below it. What was put before may only be directories. Entries is not for such
// a builder, and Finish passes on what is left. What f keeps of an entry it must copy.
func (b *Builder) Stream(f func(*layer.Entry) error) {
	b.stream = f
	for n, path := range b.dirs.all() {
		b.held = append(b.held, heldDir{n, path})
		n.held = true
	}
}

// Most bounds how many directories the layer may have, those included that only the paths of others name: a few bytes of an archive can
// stand for as many as they like. More are a *layer.LimitError.
func (b *Builder) Most(dirs int) { b.most = dirs }

// Trim makes the builder leave out directories that are as they were below the layer, but for their times, and in which the layer has
// nothing: as BuildKit does, which finds a layer by comparing what was below with what is there.
func (b *Builder) Trim() { b.trim = true }

// pass gives the stream the directories that are held back, and then e unless it is nil.
func (b *Builder) pass(e *layer.Entry) error {
	if len(b.held) > 0 {
		if err := b.flush(e, b.stream); err != nil {
			return err
		}
	}
	if e == nil {
		return nil
	}
	b.passed = *e
	return b.stream(&b.passed)
}

// flush gives f the directories that are held back. follows is what comes after them; nil for nothing. What f keeps of
// an entry it must copy.
func (b *Builder) flush(follows *layer.Entry, f func(*layer.Entry) error) error {
	// What is in a directory comes right after it, so it is enough to look at what comes next.
	next := ""
	if follows != nil {
		next = follows.Path
	}
	for _, n := range slices.Backward(b.held) {
		if n.gone || !b.trim {
			continue
		}
		if next == "" || !layer.Within(next, n.path) {
			same, err := b.same(n)
			if err != nil {
				return err
			}
			if n.idle = same; same {
				continue
			}
		}
		next = n.path
	}
	for _, n := range b.held {
		n.held = false
		if n.gone || n.idle {
			continue
		}
		b.passed = n.entry(n.path)
		if err := f(&b.passed); err != nil {
			return err
		}
	}
	b.held = b.held[:0]
	return nil
}

// same reports whether a directory is as it was below the layer, but for its time.
func (b *Builder) same(n heldDir) (bool, error) {
	if b.parent == nil || n.alone || n.Opaque {
		return false, nil
	}
	lower, ok, err := b.parent.Lookup(n.path)
	return ok && lower.Type == layer.Dir && lower.Mode == n.Mode && lower.UID == n.UID && lower.GID == n.GID &&
		slices.Equal(lower.Xattrs, n.Xattrs), err
}

// Close frees the builder's descriptors.
func (b *Builder) Close() {
	b.leaves.close()
	if b.to != nil {
		b.to.Close()
	}
}

// Lookup returns the entry of a physical path as it will be; false where there is none.
func (b *Builder) Lookup(p string) (layer.Entry, bool, error) {
	n, e, ok, err := b.lookup(p)
	if n != nil && ok {
		e = n.entry(p)
	}
	return e, ok, err
}

// lookup is Lookup that of a directory returns its node and no entry.
func (b *Builder) lookup(p string) (*dirNode, layer.Entry, bool, error) {
	if p == "" {
		top, err := b.top()
		return top, layer.Entry{}, err == nil, err
	}
	up, err := b.directory(layer.Parent(p))
	if up == nil || err != nil {
		return nil, layer.Entry{}, false, err
	}
	return b.child(up, base(p), p)
}

// List returns the entries directly in the directory at a physical path as they will be, sorted by name. It reads all
// that the layer has, and is not for a builder that streams.
func (b *Builder) List(dir string) ([]layer.Entry, error) {
	byPath := map[string]layer.Entry{}
	if b.parent != nil {
		below, err := b.parent.List(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range below {
			// What the layer has there may hide it.
			e, ok, err := b.Lookup(e.Path)
			if err != nil {
				return nil, err
			}
			if ok {
				byPath[e.Path] = e
			}
		}
	}
	for n, path := range b.dirs.all() {
		if path != "" && layer.Parent(path) == dir {
			byPath[path] = n.entry(path)
		}
	}
	err := b.leaves.sorted(b.live, func(e *leaf) error {
		if layer.Parent(e.Path) == dir && e.Type != layer.Whiteout {
			byPath[e.Path] = e.Entry
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := slices.Collect(maps.Values(byPath))
	slices.SortFunc(out, func(a, b layer.Entry) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// directory returns the node of the directory at a physical path; nil for none.
func (b *Builder) directory(p string) (*dirNode, error) {
	if n := b.dirs.find(p); n != nil {
		return n, nil
	}
	at, err := b.top()
	for i, name := range pathPrefixes(p) {
		if at, _, _, err = b.child(at, name, p[:i]); at == nil || err != nil {
			return nil, err
		}
	}
	return at, err
}

// pathPrefixes yields the components of a path, each with the length of the path up to its end.
func pathPrefixes(p string) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		for begin := 0; begin < len(p); {
			end := begin + strings.IndexByte(p[begin:], '/')
			if end < begin {
				end = len(p)
			}
			if !yield(end, p[begin:end]) {
				return
			}
			begin = end + 1
		}
	}
}

// top returns the node of the root directory, with the attributes that it has below the layer unless it is the layer's own.
func (b *Builder) top() (*dirNode, error) {
	top := b.dirs.top
	if top.mine || top.below {
		return top, nil
	}
	e := layer.Entry{Type: layer.Dir, Mode: 0o755}
	if b.parent != nil {
		lower, ok, err := b.parent.Lookup("")
		if err != nil {
			return nil, err
		}
		if ok {
			e = lower
		}
	}
	top.Entry, top.below = e, true
	return top, nil
}

// child looks up a name in a directory; p is the path of both. Of a directory it returns the node and no entry.
func (b *Builder) child(in *dirNode, name, p string) (*dirNode, layer.Entry, bool, error) {
	if n := b.dirs.child(in, name); n != nil {
		return n, layer.Entry{}, true, nil
	}
	if e, ok, err := b.leafIn(in, name); ok || err != nil {
		return nil, e, ok && e.Type != layer.Whiteout, err
	}
	if b.parent == nil || in.alone {
		return nil, layer.Entry{}, false, nil
	}
	e, ok, err := b.parent.Lookup(p)
	if ok && e.Type == layer.Dir {
		n := b.dirs.add(in, name)
		n.Entry, n.below = e, true
		n.Path = ""
		return n, layer.Entry{}, true, err
	}
	return nil, e, ok, err
}

// Mkdirs makes the directory at a physical path, and its missing parents, each with what made gives for its path. Those
// that exist are left as they are; a path where something else is, is an error.
func (b *Builder) Mkdirs(p string, made func(path string) layer.Entry) error {
	if b.dirs.own(p, false) != nil {
		return nil
	}
	at, err := b.top()
	if err != nil {
		return err
	}
	missing := false
	for i, name := range pathPrefixes(p) {
		path := p[:i]
		var n *dirNode
		if !missing {
			var ok bool
			if n, _, ok, err = b.child(at, name, path); err != nil {
				return err
			}
			if ok && n == nil {
				if ok, err = b.blocks(path); err != nil {
					return err
				}
				if ok {
					return &layer.PathError{Path: path, Msg: "is not a directory"}
				}
			}
			missing = !ok
		}
		switch {
		case missing:
			n, err = b.mkdir(at, path, made)
		case !n.mine:
			err = b.copyUp(n, path)
		}
		if err != nil {
			return err
		}
		at = n
	}
	return nil
}

// blocks reports whether what is at a path, and is no directory, is an error for a directory there. In the layer of an image a directory
// takes the place of what a lower layer has.
func (b *Builder) blocks(path string) (bool, error) {
	if !b.ownLinks {
		return true, nil
	}
	_, own, err := b.own(path)
	return own, err
}

// mkdir makes a directory at a path in a directory of the layer, or in the root.
func (b *Builder) mkdir(up *dirNode, path string, made func(path string) layer.Entry) (*dirNode, error) {
	// Whoever made asks is told of the directory that it is in.
	b.dirs.remember(layer.Parent(path), up)
	dir := made(path)
	dir.Path, dir.Type = path, layer.Dir
	if err := b.replace(&dir); err != nil {
		return nil, err
	}
	if err := b.add(&dir, nil); err != nil {
		return nil, err
	}
	return b.dirs.find(path), nil
}

// copyUp makes an entry of the layer of a directory that is below it. Those above it are the layer's already.
func (b *Builder) copyUp(n *dirNode, path string) error {
	// The time is not this layer's own, but that of the directory it found.
	e := n.entry(path)
	e.Clock, e.Opaque, e.Implied = true, false, false
	return b.add(&e, nil)
}

// add puts an entry in the layer whose parent directory is there, and that is not.
func (b *Builder) add(e *layer.Entry, body io.Reader) error {
	if e.Type == layer.Dir && b.most > 0 && b.dirs.made >= b.most {
		return &layer.LimitError{Msg: fmt.Sprintf("the archive's names make more than the %d directories that are allowed; "+
			"archive.maxEntries in kiln.toml allows more", b.most)}
	}
	switch {
	case b.to != nil:
		if err := b.to.Put(e, body); err != nil {
			return err
		}
	case body != nil && e.Type == layer.File:
		if b.buf == nil {
			b.buf = make([]byte, 32<<10)
		}
		h := sha256.New()
		n, err := io.CopyBuffer(h, struct{ io.Reader }{body}, b.buf)
		if err != nil {
			return err
		}
		e.Size = n
		h.Sum(e.Digest[:0])
	}
	alone := false
	if e.Type == layer.Dir && e.Path != "" {
		alone = e.Opaque
		if up := b.dirs.find(layer.Parent(e.Path)); up != nil && up.alone {
			alone = true
		} else if b.parent != nil && !alone {
			lower, ok, err := b.parent.Lookup(e.Path)
			if err != nil {
				return err
			}
			alone = !ok || lower.Type != layer.Dir
		}
	}
	return b.set(e, alone)
}

// Put adds an entry at its physical path; a directory gives its attributes to one that is there, anything else replaces
// what is there. Missing parent directories are made, mode 0755 and owned by root. For a File body is read to its end, and
// the layer's Size and Digest are what was read; for a builder that does not write it may be nil if e has them. Hardlinks
// are made by Link. The layer's entry has the LinkID of e, by which a caller finds the file again.
func (b *Builder) Put(e layer.Entry, body io.Reader) error {
	if msg := layer.BadName(e.Path); msg != "" {
		return &layer.PathError{Path: e.Path, Msg: msg}
	}
	if err := b.Mkdirs(layer.Parent(e.Path), b.implied); err != nil {
		return err
	}
	if e.Type == layer.Dir {
		if old, ok, err := b.Lookup(e.Path); err != nil {
			return err
		} else if ok && old.Type == layer.Dir {
			return b.putDir(&e)
		}
	}
	if e.Type == layer.Dir || b.stream == nil { // to a stream nothing else comes twice
		if err := b.replace(&e); err != nil {
			return err
		}
	}
	return b.add(&e, body)
}

// putDir gives the directory that is at e's path the attributes of e.
func (b *Builder) putDir(e *layer.Entry) error {
	if err := b.Mkdirs(e.Path, b.implied); err != nil {
		return err
	}
	alone := false
	if mine := b.dirs.own(e.Path, false); mine != nil {
		e.Opaque, alone = mine.Opaque, mine.alone
	}
	if b.to != nil {
		if err := b.to.SetDir(e); err != nil {
			return err
		}
	}
	return b.set(e, alone)
}

// replace makes room for an entry, and makes a directory opaque that must not show what was in a lower one.
func (b *Builder) replace(e *layer.Entry) error {
	mine, ok, err := b.own(e.Path)
	if err != nil {
		return err
	}
	if ok {
		if e.Type == layer.Dir && b.parent == nil {
			e.Opaque = mine.Type == layer.Whiteout
		}
		if err := b.forget(e.Path); err != nil {
			return err
		}
	}
	if e.Type == layer.Dir && b.parent != nil {
		lower, ok, err := b.Lookup(e.Path)
		if err != nil {
			return err
		}
		e.Opaque = ok && lower.Type == layer.Dir
	}
	return nil
}

// Link makes a further name at e's path of the file that has the physical path target in this layer; e is otherwise as the
// file is.
func (b *Builder) Link(e layer.Entry, target string) error {
	p := e.Path
	if msg := layer.BadName(p); msg != "" {
		return &layer.PathError{Path: p, Msg: msg}
	}
	if err := b.Mkdirs(layer.Parent(p), b.implied); err != nil {
		return err
	}
	link := layer.Entry{Path: p, Type: layer.Hardlink, Link: target, Mode: e.Mode, UID: e.UID, GID: e.GID, ModTime: e.ModTime, Clock: e.Clock}
	if b.stream != nil {
		// The first name in order is the file, and it came first.
		if b.to != nil {
			if err := b.to.Put(&link, nil); err != nil {
				return err
			}
		}
		return b.pass(&link)
	}
	file, ok, err := b.leaf(target)
	if err != nil {
		return err
	}
	if !ok || file.Type == layer.Whiteout {
		return &layer.PathError{Path: target, Msg: "is not a file of this layer, so that /" + p + " cannot be linked to it"}
	}
	if p == target {
		return nil
	}
	if err := b.forget(p); err != nil {
		return err
	}
	if file.links == 0 {
		b.links++
		file.links = b.links
		if err := b.leaves.put(&file); err != nil {
			return err
		}
	}
	if b.to != nil {
		if err := b.to.Put(&link, nil); err != nil {
			return err
		}
	}
	file.Path = p
	return b.setLeaf(&file)
}

func (b *Builder) implied(p string) layer.Entry {
	return layer.Entry{Mode: 0o755, ModTime: b.now, Clock: true, Implied: b.parent == nil}
}

// forget takes a path and what is below it out of the layer.
func (b *Builder) forget(p string) error {
	dir := b.dirs.own(p, false)
	_, ok, err := b.leaf(p)
	if err != nil || dir == nil && !ok {
		return err
	}
	if b.to != nil {
		if err := b.to.Remove(p); err != nil {
			return err
		}
	}
	if dir != nil {
		b.dirs.remove(dir)
		return nil
	}
	return b.leaves.remove(b.number(p), base(p))
}

// Delete removes what is at a physical path, in the layer and below it.
func (b *Builder) Delete(p string) error {
	if p == "" {
		return &layer.PathError{Path: p, Msg: "the root cannot be deleted"}
	}
	if err := b.forget(p); err != nil {
		return err
	}
	if _, ok, err := b.Lookup(p); err != nil || !ok && b.parent != nil {
		return err
	}
	return b.Whiteout(p)
}

// Whiteout hides what lower layers have at a physical path. What the layer itself has there stays (image-spec, layer.md:
// a whiteout applies to lower layers only).
func (b *Builder) Whiteout(p string) error {
	if b.dirs.own(p, false) != nil {
		return b.Opaque(p)
	}
	if _, ok, err := b.leaf(p); ok || err != nil {
		return err
	}
	if err := b.Mkdirs(layer.Parent(p), b.implied); err != nil {
		return err
	}
	if up := b.dirs.find(layer.Parent(p)); up != nil && up.alone {
		return nil // nothing is hidden, and the overlay would list the whiteout
	}
	return b.add(&layer.Entry{Path: p, Type: layer.Whiteout}, nil)
}

// Opaque hides what lower layers have in the directory at a physical path, which the layer has or gets.
func (b *Builder) Opaque(p string) error {
	if err := b.Mkdirs(p, b.implied); err != nil {
		return err
	}
	if b.dirs.own(p, false) == nil {
		if err := b.set(&layer.Entry{Type: layer.Dir, Mode: 0o755, ModTime: b.now, Clock: true, Implied: b.parent == nil}, false); err != nil {
			return err
		}
	}
	n := b.dirs.own(p, false)
	n.Opaque = true
	b.dirs.hide(n)
	if b.to != nil {
		e := n.entry(p)
		return b.to.SetDir(&e)
	}
	return nil
}

// Entries calls f for what the layer has so far, in the order of layer.Compare. Of the names of one file the first is the
// File, and the others are Hardlinks to it.
func (b *Builder) Entries(f func(*layer.Entry) error) error {
	next, stop := iter.Pull2(b.dirs.all())
	defer stop()
	dir, path, more := next()
	hold := func() {
		b.held = append(b.held, heldDir{dir, path})
		dir, path, more = next()
	}
	first := map[int]string{}
	err := b.leaves.sorted(b.live, func(e *leaf) error {
		for more && layer.Compare(path, e.Path) < 0 {
			hold()
		}
		if err := b.flush(&e.Entry, f); err != nil {
			return err
		}
		if e.links != 0 {
			if name, ok := first[e.links]; ok {
				e.Type, e.Link, e.Size, e.Digest, e.Xattrs = layer.Hardlink, name, 0, layer.Digest{}, nil
			} else {
				first[e.links] = e.Path
			}
		}
		return f(&e.Entry)
	})
	if err != nil {
		return err
	}
	for more {
		hold()
	}
	return b.flush(nil, f)
}

// Finish passes on what a stream has not got yet, and finishes the Writer. If the builder is to Trim and does not stream, Entries must be
// called before.
func (b *Builder) Finish() error {
	if b.stream != nil {
		if err := b.pass(nil); err != nil {
			return err
		}
	}
	if b.to == nil {
		return nil
	}
	return b.to.Finish(func(yield func(*layer.Entry, bool) bool) {
		for n, path := range b.dirs.all() {
			e := n.entry(path)
			if !yield(&e, !n.idle) {
				return
			}
		}
	})
}

// Own reports whether the layer itself has something at a physical path.
func (b *Builder) Own(p string) (bool, error) {
	e, ok, err := b.own(p)
	return ok && e.Type != layer.Whiteout, err
}
