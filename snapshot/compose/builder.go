// Package compose builds a layer from a sequence of entries: those of an archive, or copies from other trees. It does not know
// where layers are stored.
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

// Writer writes the files of a Builder's layer. It is implemented by *dir.Writer. The Builder returns its errors unchanged.
type Writer interface {
	// Put writes an entry at a path that does not exist yet, in a directory that was put before. For a File it reads body to EOF and
	// sets the entry's Size and Digest.
	Put(e *layer.Entry, body io.Reader) error
	// SetDir changes the attributes of a directory that was put before.
	SetDir(e *layer.Entry) error
	// Remove removes a path that was put before, with everything below it.
	Remove(path string) error
	// Finish completes the layer. dirs yields its directories in the order of layer.Compare, and whether the layer keeps each of
	// them. A directory that is not kept contains nothing that is kept.
	Finish(dirs iter.Seq2[*layer.Entry, bool]) error
	// Close releases the writer's resources. It may be called more than once.
	Close()
}

// Builder builds one layer on top of a root file system that it can read. It resolves paths as if the layer were already in
// place. With a Writer, files are written as they arrive; without one, the Builder only computes the layer's entries. It keeps in
// memory the layer's directories and the directories of lower layers that paths pass through. An operation takes time linear in
// the length of its path. A Builder is not safe for concurrent use.
type Builder struct {
	parent layer.Tree // nil: unknown
	dirs   dirTree
	most   int // maximum number of directories; 0 for no limit
	kept   int // total size of the directories' extended attributes, in bytes
	spill  *spill
	links  int    // number of files with more than one name
	to     Writer // nil if nothing is written
	now    time.Time
	// stream, if not nil, receives the entries as they arrive: see Stream. held are the directories that have not been passed to it,
	// or to the callback of Entries, yet.
	stream func(*layer.Entry) error
	held   []heldDir
	trim   bool // see Trim
	// ofImage says that the layer is one of an image: paths follow its own symbolic links alone, its directories replace what is below,
	// and the times of those that it does not describe are known.
	ofImage bool
	buf     []byte      // for reading files; allocated on first use
	passed  layer.Entry // the entry passed to stream last, kept here to avoid an allocation for each
}

// maxKept limits the total size in bytes of the extended attributes of an archive's directories, which stay in memory until the
// layer is complete.
const maxKept = 64 << 20

// heldDir is a directory with its path.
type heldDir struct {
	*dirNode
	path string
}

// set records an entry whose parent directory exists, replacing an entry of the same path and type.
func (b *Builder) set(e *layer.Entry, alone bool) error {
	if e.Type != layer.Dir {
		if n := b.dirs.find(e.Path); n != nil && n != b.dirs.top {
			b.dirs.remove(n) // a directory of a lower layer, hidden by e
		}
		if b.stream != nil {
			return b.pass(e)
		}
		return b.setLeaf(&leaf{Entry: *e})
	}
	n := b.dirs.own(e.Path, true)
	if n == nil {
		return fmt.Errorf("BUG: the parent directory of %q does not exist", e.Path)
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
	return b.spill.put(e)
}

// number returns the number of the directory that contains path.
func (b *Builder) number(path string) int {
	if up := b.dirs.find(layer.Parent(path)); up != nil {
		return up.number
	}
	return noDirectory
}

// leafIn returns the layer's own entry for a name in a directory, if it is not a directory. A streaming Builder keeps no such
// entries.
func (b *Builder) leafIn(n *dirNode, name string) (layer.Entry, bool, error) {
	if b.stream != nil {
		return layer.Entry{}, false, nil
	}
	e, ok, err := b.spill.get(n.number, name)
	return e.Entry, ok, err
}

// leaf is like leafIn but takes a path.
func (b *Builder) leaf(p string) (leaf, bool, error) {
	if b.stream != nil {
		return leaf{}, false, nil
	}
	return b.spill.get(b.number(p), base(p))
}

// base returns the last component of a path.
func base(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

// live reports whether an entry is still part of the layer.
func (b *Builder) live(e *leaf) bool { return !b.dirs.dead[e.in] }

// own returns the layer's own entry for a path.
func (b *Builder) own(p string) (layer.Entry, bool, error) {
	if n := b.dirs.own(p, false); n != nil {
		return n.entry(p), true, nil
	}
	e, ok, err := b.leaf(p)
	return e.Entry, ok, err
}

// New returns a Builder on top of parent. A nil parent is for the layer of an image, whose entries may be in directories that
// only lower layers contain: such directories are created and marked Implied. With a nil Writer nothing is written. tmp is a
// directory for entries that do not fit in memory. Directories that the caller does not put get the time now. The caller must
// call Close, which also closes the Writer.
func New(parent layer.Tree, tmp string, now time.Time, to Writer) *Builder {
	return &Builder{parent: parent, to: to, dirs: newDirTree(), spill: newSpill(tmp), now: now}
}

// Stream makes the builder pass its entries to f in the order of layer.Compare, and keep only the directories. From then on,
// entries must be put in that order and each path only once, except that a directory may be put again before anything below it.
// Only directories may have been put before. Entries must not be called on such a builder; Finish passes the remaining entries. f
// must copy what it retains of an entry.
func (b *Builder) Stream(f func(*layer.Entry) error) {
	b.stream = f
	for n, path := range b.dirs.all() {
		b.held = append(b.held, heldDir{n, path})
		n.held = true
	}
}

// Most limits the number of directories in the layer, including those that are only implied by the paths of other entries, since
// a few bytes of an archive can imply any number of them. Exceeding the limit is a *layer.LimitError.
func (b *Builder) Most(dirs int) { b.most = dirs }

// Trim makes the builder omit directories that contain no changes and are unchanged from the lower layers except for their times,
// like BuildKit, which computes a layer by comparing the file systems before and after.
func (b *Builder) Trim() { b.trim = true }

// pass passes the held directories to the stream, and then e unless it is nil.
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

// flush passes the held directories to f. follows is the entry that comes next, or nil at the end. f must copy what it retains of
// an entry.
func (b *Builder) flush(follows *layer.Entry, f func(*layer.Entry) error) error {
	// The entries in a directory directly follow it, so checking the next entry is enough.
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

// same reports whether a directory is unchanged from the lower layers, except for its time.
func (b *Builder) same(n heldDir) (bool, error) {
	if b.parent == nil || n.alone || n.Opaque {
		return false, nil
	}
	lower, ok, err := b.parent.Lookup(n.path)
	return ok && lower.Type == layer.Dir && lower.Mode == n.Mode && lower.UID == n.UID && lower.GID == n.GID &&
		slices.Equal(lower.Xattrs, n.Xattrs), err
}

// Close releases the builder's resources and closes its Writer.
func (b *Builder) Close() {
	b.spill.close()
	if b.to != nil {
		b.to.Close()
	}
}

// Lookup returns the entry that a physical path will have. It returns false if the path will not exist.
func (b *Builder) Lookup(p string) (layer.Entry, bool, error) {
	n, e, ok, err := b.lookup(p)
	if n != nil && ok {
		e = n.entry(p)
	}
	return e, ok, err
}

// lookup is like Lookup, but for a directory it returns only the node.
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

// List returns the entries that the directory at a physical path will have, sorted by name. It reads all of the layer's entries,
// and must not be called on a streaming builder.
func (b *Builder) List(dir string) ([]layer.Entry, error) {
	byPath := map[string]layer.Entry{}
	if b.parent != nil {
		below, err := b.parent.List(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range below {
			// The layer may have replaced or deleted the entry.
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
	err := b.spill.sorted(b.live, func(e *leaf) error {
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

// directory returns the node of the directory at a physical path, or nil if it does not exist.
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

// pathPrefixes yields the components of a path, each with the length of the prefix that it ends.
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

// top returns the node of the root directory. Unless the layer has its own entry for it, the attributes are those in the lower
// layers.
func (b *Builder) top() (*dirNode, error) {
	top := b.dirs.top
	if top.mine || top.below {
		return top, nil
	}
	e := layer.Root()
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

// child looks up a name in a directory; p is the resulting path. For a directory it returns only the node.
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

// Mkdirs creates the directory at a physical path and its missing parents. The entry of each is made(path). Existing directories
// are left unchanged. It is an error if the path leads through something other than a directory.
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

// blocks reports whether the existing entry at path, which is not a directory, prevents a directory from being created there. In
// the layer of an image, a directory replaces what a lower layer contains.
func (b *Builder) blocks(path string) (bool, error) {
	if !b.ofImage {
		return true, nil
	}
	_, own, err := b.own(path)
	return own, err
}

// mkdir creates a directory in up, which is a directory of the layer or the root.
func (b *Builder) mkdir(up *dirNode, path string, made func(path string) layer.Entry) (*dirNode, error) {
	// made may look up the parent directory.
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

// copyUp copies a directory of a lower layer into this layer. Its parents are already part of this layer.
func (b *Builder) copyUp(n *dirNode, path string) error {
	e := n.entry(path)
	e.Opaque, e.Implied = false, false
	if !b.ofImage {
		// The time was not set by this step, so it does not count as part of the layer's identity. In the layer of an image it counts
		// as it does in the layer below, with which steps were planned.
		e.Clock = true
	}
	return b.add(&e, nil)
}

// add puts a new entry, whose parent directory exists, in the layer.
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
		if data, digest, ok := layer.Loaded(body); ok {
			e.Size, e.Digest = int64(len(data)), digest
			break
		}
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

// Put adds an entry at its physical path. A directory that already exists gets the attributes of e; anything else is replaced.
// Missing parent directories are created with mode 0755 and owner root. For a File, body is read to EOF, which determines the
// entry's Size and Digest; if the builder does not write, body may be nil if e has them. Hard links are created by Link. The
// entry keeps the LinkID of e, by which the caller finds the file again.
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
	if e.Type == layer.Dir || b.stream == nil { // in a stream only directories occur twice
		if err := b.replace(&e); err != nil {
			return err
		}
	}
	return b.add(&e, body)
}

// putDir sets the attributes of the existing directory at e's path to those of e.
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

// replace removes what e replaces, and marks a directory opaque if it must hide the contents of a lower one.
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

// Link creates a hard link at e's path to the file at the physical path target in this layer. The other attributes of e must be
// those of the file.
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
		// The first name in the order of layer.Compare is the file, which was passed already.
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
		return &layer.PathError{Path: target, Msg: "is not a file of this layer, so /" + p + " cannot be linked to it"}
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
		if err := b.spill.put(&file); err != nil {
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

// forget removes a path, and everything below it, from the layer.
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
	return b.spill.remove(b.number(p), base(p))
}

// Delete removes a physical path from the layer and hides it in the lower layers.
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

// Whiteout hides a physical path in the lower layers. The layer's own entry at that path stays (image-spec, layer.md: a whiteout
// applies to lower layers only).
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

// Opaque hides the contents that the directory at a physical path has in the lower layers. The directory is created in this layer
// if necessary.
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

// Entries calls f for each entry of the layer so far, in the order of layer.Compare. Of the names of a file, the first is the
// File and the others are Hardlinks to it.
func (b *Builder) Entries(f func(*layer.Entry) error) error {
	next, stop := iter.Pull2(b.dirs.all())
	defer stop()
	dir, path, more := next()
	hold := func() {
		b.held = append(b.held, heldDir{dir, path})
		dir, path, more = next()
	}
	first := map[int]string{}
	err := b.spill.sorted(b.live, func(e *leaf) error {
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

// Finish passes the remaining entries to the stream, and finishes the Writer. If Trim was called and the builder does not stream,
// Entries must be called first.
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

// Own reports whether the layer itself has an entry, other than a whiteout, at a physical path.
func (b *Builder) Own(p string) (bool, error) {
	e, ok, err := b.own(p)
	return ok && e.Type != layer.Whiteout, err
}
