package snapshot

import (
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links one path may lead through, as in path_resolution(7).
const maxLinks = 40

// Builder puts one layer together, over a root file system that it can read: paths are resolved as they would be if the
// layer were already in place. With a pending layer behind it files are written as they come; without one it only
// works out what the layer's entries would be. In memory are the layer's directories alone. It is not safe for concurrent use.
type Builder struct {
	parent  layer.Tree // nil: what is below is not known
	pending *Pending
	dirs    map[string]*dirNode
	order   []*dirNode // the directories as they came, and some that are no more
	numbers int        // of directories so far
	leaves  *leaves
	links   int // how many files have several names
	disk    *disk
	now     time.Time
	// stream, where not nil, takes the entries as they come: see Stream. held are directories that it, or who asks for Entries, has not
	// got yet.
	stream func(*layer.Entry) error
	held   []*dirNode
	trim   bool        // see Trim
	passed layer.Entry // the last one that was no directory: one place for all of them
}

// dirNode is a directory of the layer, by its physical path.
type dirNode struct {
	layer.Entry
	// number is another one for each directory that is made, also at the same path.
	number int
	// below are the directories that were put in it, and some that are no more.
	below []*dirNode
	// alone says that nothing that lies below the layer can be seen in it.
	alone bool
	// idle says that the layer is not to have it: see Trim.
	idle bool
	// gone says that the directory is not part of the layer any more.
	gone bool
}

// set puts an entry in the layer, whose parent directory is there, in the place of that of the same path and type.
func (b *Builder) set(e *layer.Entry, alone bool) error {
	if e.Type != layer.Dir {
		if b.stream != nil {
			return b.pass(e)
		}
		return b.setLeaf(&leaf{Entry: *e})
	}
	n := &dirNode{Entry: *e, alone: alone}
	if old := b.dirs[n.Path]; old != nil {
		old.gone = true
		n.below, n.number = old.below, old.number
	} else {
		b.numbers++
		n.number = b.numbers
	}
	b.dirs[n.Path] = n
	if up := b.dirs[layer.Parent(n.Path)]; up != nil && up != n {
		up.below = append(up.below, n)
	}
	b.order = append(b.order, n)
	if b.stream != nil {
		b.held = append(b.held, n)
	}
	return nil
}

func (b *Builder) setLeaf(e *leaf) error {
	e.in = b.number(e.Path)
	return b.leaves.put(e)
}

// number returns that of the directory that a path is in; 0 for the root while the layer has no entry for that.
func (b *Builder) number(path string) int {
	if up := b.dirs[layer.Parent(path)]; up != nil && up.Path != "" {
		return up.number
	}
	return 0
}

// leaf returns the layer's own entry of a path if that is no directory. A stream keeps none.
func (b *Builder) leaf(p string) (leaf, bool, error) {
	if b.stream != nil {
		return leaf{}, false, nil
	}
	e, ok, err := b.leaves.get(p)
	return e, ok && b.live(&e), err
}

// live reports whether an entry is part of the layer still.
func (b *Builder) live(e *leaf) bool {
	up := layer.Parent(e.Path)
	return (up == "" || b.dirs[up] != nil) && e.in == b.number(e.Path)
}

// own returns the layer's own entry of a path.
func (b *Builder) own(p string) (layer.Entry, bool, error) {
	if n, ok := b.dirs[p]; ok {
		return n.Entry, true, nil
	}
	e, ok, err := b.leaf(p)
	return e.Entry, ok, err
}

// unset takes a directory out, and what is below it.
func (b *Builder) unset(n *dirNode) {
	n.gone = true
	delete(b.dirs, n.Path)
	for _, below := range n.below {
		if !below.gone {
			b.unset(below)
		}
	}
}

// NewBuilder returns a builder over parent. A nil parent is for the layer of an image, whose entries may be in
// directories that only lower layers name: such are made and marked Implied. p may be nil: then nothing is written.
// Directories that nobody asked for get the time now. Close must be called.
func (s *Store) NewBuilder(parent layer.Tree, p *Pending, now time.Time) *Builder {
	b := &Builder{parent: parent, pending: p, dirs: map[string]*dirNode{}, leaves: newLeaves(s.tmp), now: now}
	if p != nil {
		b.disk = newDisk(p.fs, s)
	}
	return b
}

// Reuse lets the builder take files from a committed layer that are the same in everything, by hard links, instead of
// reading them again: those that are put with a Digest. A layer that is not there, or packed, is no error. The builder must be one that writes.
func (b *Builder) Reuse(s *Store, id string) {
	m, err := s.Manifest(id)
	if err != nil || s.isPacked(id) {
		return
	}
	_ = b.disk.setEarlier(m, id) // without it files are read again
}

// Over lets the builder make a layer that has only files which are not as they are in a committed layer of many, over that, if it can.
// It goes before all else, and for a builder that streams. Any call may then fail with ErrNotOver.
func (b *Builder) Over(s *Store, id string) { b.disk.over = s.newOver(id) }

// Stream makes the builder pass its entries on to f, in the order of layer.Compare, instead of keeping them: nothing is kept
// but the directories. From then on entries must be put in that order, each path once, but for a directory, which may be put
// again before anything is put below it. What was put before may only be directories. Entries is not for such a builder, and Finish passes on what is left.
// What f keeps of an entry it must copy.
func (b *Builder) Stream(f func(*layer.Entry) error) {
	b.stream = f
	b.held = append(b.held, b.order...)
}

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

// flush gives f the directories that are held back. follows is what comes after them; nil for nothing.
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
		if next == "" || !layer.Within(next, n.Path) {
			same, err := b.same(n)
			if err != nil {
				return err
			}
			if n.idle = same; same {
				continue
			}
		}
		next = n.Path
	}
	for _, n := range b.held {
		if n.gone || n.idle {
			continue
		}
		if err := f(&n.Entry); err != nil {
			return err
		}
	}
	b.held = b.held[:0]
	return nil
}

// same reports whether a directory is as it was below the layer, but for its time.
func (b *Builder) same(n *dirNode) (bool, error) {
	if b.parent == nil || n.alone || n.Opaque {
		return false, nil
	}
	lower, ok, err := b.parent.Lookup(n.Path)
	return ok && lower.Type == layer.Dir && lower.Mode == n.Mode && lower.UID == n.UID && lower.GID == n.GID && slices.Equal(lower.Xattrs, n.Xattrs), err
}

// Close frees the builder's descriptors.
func (b *Builder) Close() {
	b.leaves.close()
	if b.disk != nil {
		b.disk.close()
	}
}

// PathError is an error about one path of the root file system that is being built.
type PathError struct {
	Path string
	Msg  string
}

func (e *PathError) Error() string { return fmt.Sprintf("/%s: %s", layer.Clip(e.Path), e.Msg) }

// Lookup returns the entry of a physical path as it will be; false where there is none.
func (b *Builder) Lookup(p string) (layer.Entry, bool, error) {
	if e, ok, err := b.own(p); ok || err != nil {
		return e, e.Type != layer.Whiteout, err
	}
	if p == "" {
		if b.parent != nil {
			if e, ok, err := b.parent.Lookup(""); ok || err != nil {
				return e, ok, err
			}
		}
		return layer.Entry{Type: layer.Dir, Mode: 0o755}, true, nil
	}
	if b.parent == nil {
		return layer.Entry{}, false, nil
	}
	// What lies below a name that the layer has in another way is hidden. Every directory of the layer knows that of those
	// above it, so the nearest one decides.
	for dir := layer.Parent(p); dir != ""; dir = layer.Parent(dir) {
		if n, ok := b.dirs[dir]; ok {
			if n.alone {
				return layer.Entry{}, false, nil
			}
			break
		}
		if _, ok, err := b.leaf(dir); ok || err != nil {
			return layer.Entry{}, false, err
		}
	}
	return b.parent.Lookup(p)
}

// Resolve returns the physical path that name stands for, following symbolic links inside the root, the last one only if
// followLast. What does not exist is taken as it is written. The entry is nil if there is nothing at the path.
func (b *Builder) Resolve(name string, followLast bool) (string, *layer.Entry, error) {
	return Resolve(b.Lookup, name, followLast)
}

// Resolve is path resolution as in a chroot over any look-up function of physical paths.
func Resolve(lookup func(string) (layer.Entry, bool, error), name string, followLast bool) (string, *layer.Entry, error) {
	cur := ""
	var at *layer.Entry
	rest := strings.Split(name, "/")
	links := 0
	for len(rest) > 0 {
		c := rest[0]
		rest = rest[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			cur, at = layer.Parent(cur), nil
			continue
		}
		next := c
		if cur != "" {
			next = cur + "/" + c
		}
		if len(next) >= layer.MaxPath {
			return "", nil, &PathError{Path: next, Msg: layer.PathTooLong}
		}
		e, ok, err := lookup(next)
		if err != nil {
			return "", nil, err
		}
		if !ok {
			cur, at = next, nil
			continue
		}
		if e.Type == layer.Symlink && (followLast || !last(rest)) {
			if links++; links > maxLinks {
				return "", nil, &PathError{Path: next, Msg: "too many levels of symbolic links"}
			}
			if strings.HasPrefix(e.Link, "/") {
				cur, at = "", nil
			}
			rest = append(strings.Split(e.Link, "/"), rest...)
			continue
		}
		cur, at = next, &e
	}
	if at == nil {
		// A path that ends in "..", or the root: look again at where it led.
		e, ok, err := lookup(cur)
		if err != nil || !ok {
			return cur, nil, err
		}
		at = &e
	}
	return cur, at, nil
}

// last reports whether none of the components names anything.
func last(rest []string) bool {
	for _, c := range rest {
		if c != "" && c != "." {
			return false
		}
	}
	return true
}

// Mkdirs makes the directory at a physical path, and its missing parents, each with what made gives for its path. Those
// that exist are left as they are; a path where something else is, is an error.
func (b *Builder) Mkdirs(p string, made func(path string) layer.Entry) error {
	if b.dirs[p] != nil {
		return nil
	}
	e, ok, err := b.Lookup(p)
	if err != nil {
		return err
	}
	if ok {
		if e.Type != layer.Dir {
			return &PathError{Path: p, Msg: "is not a directory"}
		}
		return b.copyUp(p)
	}
	if err := b.Mkdirs(layer.Parent(p), made); err != nil {
		return err
	}
	dir := made(p)
	dir.Path, dir.Type = p, layer.Dir
	if err := b.replace(&dir); err != nil {
		return err
	}
	return b.add(&dir, nil)
}

// copyUp makes sure that the layer itself has an entry for a directory of the root, and for its parents.
func (b *Builder) copyUp(p string) error {
	if b.dirs[p] != nil || p == "" {
		return nil
	}
	e, ok, err := b.Lookup(p)
	if err != nil {
		return err
	}
	if !ok || e.Type != layer.Dir {
		return fmt.Errorf("BUG: %q is no directory", p)
	}
	if err := b.copyUp(layer.Parent(p)); err != nil {
		return err
	}
	// The time is not this layer's own, but that of the directory it found.
	e.Clock, e.Opaque, e.Implied = true, false, false
	return b.add(&e, nil)
}

// add puts an entry in the layer whose parent directory is there, and that is not.
func (b *Builder) add(e *layer.Entry, body io.Reader) error {
	switch {
	case b.disk != nil:
		if err := b.disk.put(e, body); err != nil {
			return err
		}
	case body != nil && e.Type == layer.File:
		h := sha256.New()
		n, err := io.Copy(h, body)
		if err != nil {
			return err
		}
		e.Size = n
		h.Sum(e.Digest[:0])
	}
	alone := false
	if e.Type == layer.Dir && e.Path != "" {
		alone = e.Opaque
		if up := b.dirs[layer.Parent(e.Path)]; up != nil && up.alone {
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
// are made by Link.
func (b *Builder) Put(e layer.Entry, body io.Reader) error {
	if msg := badName(e.Path); msg != "" {
		return &PathError{Path: e.Path, Msg: msg}
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
	if err := b.copyUp(e.Path); err != nil {
		return err
	}
	alone := false
	if mine := b.dirs[e.Path]; mine != nil {
		e.Opaque, alone = mine.Opaque, mine.alone
	}
	if b.disk != nil {
		if err := b.disk.setDir(e); err != nil {
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
	if msg := badName(p); msg != "" {
		return &PathError{Path: p, Msg: msg}
	}
	if err := b.Mkdirs(layer.Parent(p), b.implied); err != nil {
		return err
	}
	link := layer.Entry{Path: p, Type: layer.Hardlink, Link: target, Mode: e.Mode, UID: e.UID, GID: e.GID, ModTime: e.ModTime, Clock: e.Clock}
	if b.stream != nil {
		// The first name in order is the file, and it came first.
		if b.disk != nil {
			if err := b.disk.put(&link, nil); err != nil {
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
		return &PathError{Path: target, Msg: "is not a file of this layer, so that /" + p + " cannot be linked to it"}
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
	if b.disk != nil {
		if err := b.disk.put(&link, nil); err != nil {
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
	dir := b.dirs[p]
	_, ok, err := b.leaf(p)
	if err != nil || dir == nil && !ok {
		return err
	}
	if b.disk != nil {
		if err := b.disk.remove(p); err != nil {
			return err
		}
	}
	if dir != nil {
		b.unset(dir)
		return nil
	}
	return b.leaves.remove(p)
}

// Delete removes what is at a physical path, in the layer and below it.
func (b *Builder) Delete(p string) error {
	if p == "" {
		return &PathError{Path: p, Msg: "the root cannot be deleted"}
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
	if b.dirs[p] != nil {
		return b.Opaque(p)
	}
	if _, ok, err := b.leaf(p); ok || err != nil {
		return err
	}
	if err := b.Mkdirs(layer.Parent(p), b.implied); err != nil {
		return err
	}
	return b.add(&layer.Entry{Path: p, Type: layer.Whiteout}, nil)
}

// Opaque hides what lower layers have in the directory at a physical path, which the layer has or gets.
func (b *Builder) Opaque(p string) error {
	if err := b.Mkdirs(p, b.implied); err != nil {
		return err
	}
	if b.dirs[p] == nil {
		if err := b.set(&layer.Entry{Type: layer.Dir, Mode: 0o755, ModTime: b.now, Clock: true, Implied: b.parent == nil}, false); err != nil {
			return err
		}
	}
	n := b.dirs[p]
	n.Opaque, n.alone = true, true
	if b.disk != nil {
		return b.disk.setDir(&n.Entry)
	}
	return nil
}

// Entries calls f for what the layer has so far, in the order of layer.Compare. Of the names of one file the first is the
// File, and the others are Hardlinks to it.
func (b *Builder) Entries(f func(*layer.Entry) error) error {
	dirs := slices.DeleteFunc(b.order, func(n *dirNode) bool { return n.gone })
	order := func(x, y *dirNode) int { return layer.Compare(x.Path, y.Path) }
	if !slices.IsSortedFunc(dirs, order) {
		slices.SortFunc(dirs, order)
	}
	b.order = dirs
	first := map[int]string{}
	err := b.leaves.sorted(b.live, func(e *leaf) error {
		for len(dirs) > 0 && layer.Compare(dirs[0].Path, e.Path) < 0 {
			b.held, dirs = append(b.held, dirs[0]), dirs[1:]
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
	b.held = append(b.held, dirs...)
	return b.flush(nil, f)
}

// badName says what is wrong with a path that a layer cannot hold; "" if nothing is.
func badName(p string) string {
	for c := range strings.SplitSeq(p, "/") {
		if p != "" && (c == "" || c == "." || c == "..") {
			return "the path is not clean"
		}
		if strings.HasPrefix(c, ".wh.") {
			return "a file whose name begins with .wh. cannot be kept in an image: the layer format takes it for a deletion"
		}
		if len(c) > unix.NAME_MAX {
			return "the name is longer than 255 bytes"
		}
	}
	if strings.IndexByte(p, 0) >= 0 {
		return "the name has a NUL byte"
	}
	return ""
}

// Finish passes on what a stream has not got yet, and sets what can only be set when everything is written. If the builder is to Trim
// and no stream, Entries goes before.
func (b *Builder) Finish() error {
	if b.stream != nil {
		if err := b.pass(nil); err != nil {
			return err
		}
	}
	if b.disk == nil {
		return nil
	}
	if o := b.disk.over; o != nil {
		if err := o.finish(b.disk, b.order); err != nil {
			return err
		}
		b.pending.over = o.id
	}
	for _, n := range b.order {
		if up := b.dirs[layer.Parent(n.Path)]; n.idle && !n.gone && (up == nil || !up.idle) && b.disk.has(n.Path) {
			if err := b.disk.remove(n.Path); err != nil {
				return err
			}
		}
	}
	for _, n := range b.order {
		if !n.gone && !n.idle && b.disk.has(n.Path) {
			if err := b.disk.times(&n.Entry); err != nil {
				return err
			}
		}
	}
	b.disk.close()
	return nil
}

// Own reports whether the layer itself has something at a physical path.
func (b *Builder) Own(p string) (bool, error) {
	e, ok, err := b.own(p)
	return ok && e.Type != layer.Whiteout, err
}
