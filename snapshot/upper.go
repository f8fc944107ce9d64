package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"golang.org/x/sys/unix"
)

// clockSlack is how far the times that the kernel gives files may lie before the clock's: it stamps them once a tick,
// which is 10 ms at the slowest (CONFIG_HZ=100).
const clockSlack = 20 * time.Millisecond

// CommitChanges reads what a step left in a pending layer that was given to Mount for root, whose file system is made of below, closes
// the root, and puts the layer into the store, or takes a layer of the same identity that is there already. Times between started and now
// are the clock's. An overlay also copies files and directories up in which, in the end, nothing was changed, or of a directory nothing
// but its own time: those are no changes, and are taken away.
//
// When the layer is committed there is nothing in its directory but what its manifest says, and nobody can write to it any more: what
// processes of the step have passed on to others, as the descriptor of a file or of a directory, is of no use to change it. The error
// is mount.ErrInUse, wrapped, where a process outside the step has a file open for writing.
func (p *Pending) CommitChanges(ctx context.Context, root *Root, below *Tree, started time.Time) (Committed, error) {
	if p.copied == nil {
		root.forgetRemoved()
		if err := mount.Seal(ctx, root.File); err != nil {
			return Committed{}, fmt.Errorf("close the root file system of the step: %w", err)
		}
	}
	sum, err := p.writeManifest(ctx, root, below, started)
	if err != nil {
		return Committed{}, err
	}
	if err := root.Close(); err != nil {
		return Committed{}, fmt.Errorf("close the root file system of the step: %w", err)
	}
	if p.copied != nil || p.Rewrite {
		if err := p.rewrite(ctx); err != nil {
			return Committed{}, fmt.Errorf("copy what the step has left: %w", err)
		}
	}
	return p.CommitWritten(sum, "")
}

// writeManifest writes the manifest of what a step left.
func (p *Pending) writeManifest(ctx context.Context, root *Root, below *Tree, started time.Time) (layer.Summary, error) {
	base, err := p.store.inodeOfDir(p.dir)
	if err != nil {
		return layer.Summary{}, fmt.Errorf("read the layer: %w", err)
	}
	w, err := p.Manifest()
	if err != nil {
		return layer.Summary{}, err
	}
	d := newDigesting(ctx, w.Add)
	r := &upperReader{ctx: ctx, store: p.store, root: root, below: below, copied: p.copied, base: base, from: started.Add(-clockSlack), to: time.Now(), digesting: d, links: map[string]*layer.Entry{}}
	err = r.all(p)
	if failed := d.close(); failed != nil {
		err = failed
	}
	if err != nil {
		w.Abort()
		return layer.Summary{}, fmt.Errorf("read the layer: %w", err)
	}
	sum, err := w.Close(time.Now())
	if err != nil {
		err = fmt.Errorf("write a layer's manifest: %w", err)
	}
	return sum, err
}

// all emits what is in the layer, in the order of layer.Compare.
func (r *upperReader) all(p *Pending) error {
	dir, err := p.fs.OpenFile("", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	r.at = dirtree.NewDescent(dir)
	defer r.at.Close()
	root, err := r.entry("", "", true)
	if err != nil {
		return err
	}
	same, err := r.unchanged(root)
	if err == nil && !same {
		err = r.digesting.emit(root)
	}
	if err != nil {
		return err
	}
	if p.copied != nil {
		c := &copyReader{upperReader: r, next: 1}
		return c.dir("")
	}
	if same {
		// The directory is not in the layer, which may lie over a root with other attributes.
		if err := removeXattrs(target{fd: r.at.Fd()}, root.Xattrs); err != nil {
			return err
		}
	}
	return r.restoring(root, r.dir)
}

func removeXattrs(t target, list []layer.Xattr) error {
	for _, x := range list {
		if err := t.remove(x.Name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove the attribute %s: %w", x.Name, err)
		}
	}
	return nil
}

// put emits an entry that is no directory.
func (r *upperReader) put(e *layer.Entry) error {
	if err := r.pass(); err != nil {
		return err
	}
	return r.digesting.emit(e)
}

// pass emits the directories that are held back.
func (r *upperReader) pass() error {
	for _, e := range r.held {
		if err := r.digesting.emit(e); err != nil {
			return err
		}
	}
	r.held = r.held[:0]
	return nil
}

// unchanged reports whether a directory is below as it is here, but for its time, which by itself is no change, as for BuildKit.
func (r *upperReader) unchanged(e *layer.Entry) (bool, error) {
	old, ok, err := r.below.Lookup(e.Path)
	if err != nil || !ok || e.Opaque || r.hidden {
		return false, err
	}
	return old.Type == layer.Dir && old.Mode == e.Mode && old.UID == e.UID && old.GID == e.GID && slices.Equal(old.Xattrs, e.Xattrs), nil
}

type upperReader struct {
	ctx      context.Context
	store    *Store
	root     *Root // as the step saw it
	below    *Tree
	copied   *copied // nil: what is read is the upper directory of an overlay
	base     inode   // of the directory that the layer is made in
	from, to time.Time
	at       *dirtree.Descent // the directory that is read
	// hidden says that nothing of below is seen in the directory that is read: it is opaque or new, or one above it is.
	hidden    bool
	links     map[string]*layer.Entry // the first name of a file that has several, by LinkID
	digesting *digesting
	// lost are files of below that are not there any more; nil: not known yet. See moved.
	lost map[lostKey][]layer.Entry
	// removed says that something was removed from the directory that is read, which changed its time.
	removed bool
	// held are directories, each in the one before, in which nothing was found yet: they may be no changes.
	held []*layer.Entry
}

func (r *upperReader) dir(path string) error {
	if err := r.ctx.Err(); err != nil {
		return context.Cause(r.ctx)
	}
	names, err := r.at.File().Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := r.name(name, join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// name reads a name of the directory, and what is below it.
func (r *upperReader) name(name, p string) error {
	if msg := badName(name); msg != "" {
		return &PathError{Path: p, Msg: msg}
	}
	if len(p) >= layer.MaxPath {
		return &PathError{Path: p, Msg: layer.PathTooLong}
	}
	e, err := r.entry(name, p, false)
	if err != nil {
		return err
	}
	if e == nil {
		return r.drop(name, p)
	}
	if same, err := r.same(e); err != nil {
		return err
	} else if same {
		return r.remove(name)
	}
	return r.add(r.linked(e))
}

// drop takes from the layer's directory what no layer can hold. What it has taken the place of is deleted.
func (r *upperReader) drop(name, p string) error {
	if r.copied != nil {
		return nil // only what the manifest has is taken from a copy
	}
	if err := r.remove(name); err != nil || r.hidden {
		return err
	}
	if _, ok, err := r.below.Lookup(p); err != nil || !ok {
		return err
	}
	if err := unix.Mknodat(r.at.Fd(), name, unix.S_IFCHR, 0); err != nil {
		return &os.PathError{Op: "mknod", Path: p, Err: err}
	}
	return r.put(&layer.Entry{Path: p, Type: layer.Whiteout})
}

// remove takes from the layer's directory what is no change.
func (r *upperReader) remove(name string) error {
	r.removed = true
	return dirtree.RemoveAt(r.at.Fd(), name)
}

// same reports whether an entry that is no directory is below as it is here.
func (r *upperReader) same(e *layer.Entry) (bool, error) {
	if r.hidden || e.Type == layer.Dir || e.Type == layer.Whiteout || e.Type == layer.Hardlink {
		return false, nil
	}
	old, ok, err := r.below.Lookup(e.Path)
	if err != nil || !ok || !like(e, &old) {
		return false, err
	}
	if err := r.digesting.wait(e); err != nil || !equal(e, &old) {
		return false, err
	}
	r.digesting.drop(e)
	return true, nil
}

// like reports what equal does of what is known of a file that was not read.
func like(e, was *layer.Entry) bool {
	return e.Type == was.Type && e.Mode == was.Mode && e.UID == was.UID && e.GID == was.GID && e.ModTime.Equal(was.ModTime)
}

// linked returns an entry that is to be emitted, as a further name of a file if one of that was emitted before.
func (r *upperReader) linked(e *layer.Entry) *layer.Entry {
	if e.LinkID == "" || e.Type == layer.Hardlink {
		return e
	}
	first, ok := r.links[e.LinkID]
	if !ok {
		r.links[e.LinkID] = e
		return e
	}
	return &layer.Entry{Path: e.Path, Type: layer.Hardlink, Link: first.Path, Mode: e.Mode, UID: first.UID, GID: first.GID, ModTime: e.ModTime, Clock: e.Clock}
}

// add emits an entry, and what is below it.
func (r *upperReader) add(e *layer.Entry) error {
	if e.Type != layer.Dir {
		return r.put(e)
	}
	hidden := r.hidden
	if r.hidden = hidden || e.Opaque; !r.hidden {
		old, ok, err := r.below.Lookup(e.Path)
		if err != nil {
			return err
		}
		r.hidden = !ok || old.Type != layer.Dir
	}
	same, err := r.directory(e, r.dir)
	r.hidden = hidden
	if err != nil || !same {
		return err
	}
	return r.remove(e.Name())
}

// directory emits a directory and what read finds in it. If that is nothing, and the directory is as it is below, it reports true and emits
// nothing.
func (r *upperReader) directory(e *layer.Entry, read func(path string) error) (same bool, err error) {
	r.held = append(r.held, e)
	if err := r.at.Enter(e.Name()); err != nil {
		return false, &os.PathError{Op: "open", Path: e.Path, Err: err}
	}
	if err := r.restoring(e, read); err != nil {
		return false, err
	}
	if err := r.at.Leave(); err != nil || len(r.held) == 0 {
		return false, err
	}
	same, err = r.unchanged(e)
	switch {
	case err != nil:
	case !same:
		err = r.pass()
	default:
		r.held = r.held[:len(r.held)-1]
	}
	return same, err
}

// restoring reads a directory, and gives it its time back if something was removed from it.
func (r *upperReader) restoring(e *layer.Entry, read func(path string) error) error {
	above := r.removed
	r.removed = false
	err := read(e.Path)
	if r.removed && err == nil {
		err = setTime(r.at.Fd(), "", e.ModTime)
	}
	r.removed = above
	return err
}

// entry describes a name in the directory, or for the name "" the directory itself; nil for what no layer can hold. Of an overlay it also
// takes from the file what its entry does not say. own says, of a copy, that the file is the one that was copied to this path.
func (r *upperReader) entry(name, p string, own bool) (*layer.Entry, error) {
	var st unix.Stat_t
	dir, flags := r.at.Fd(), unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Fstatat(dir, name, &st, flags); err != nil {
		return nil, &os.PathError{Op: "stat", Path: p, Err: err}
	}
	e := &layer.Entry{Path: p, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec)}
	e.Clock = !e.ModTime.Before(r.from) && !e.ModTime.After(r.to)
	fail := func(op string, err error) (*layer.Entry, error) {
		return nil, &os.PathError{Op: op, Path: p, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = layer.Dir
	case unix.S_IFREG:
		e.Type = layer.File
	case unix.S_IFLNK:
		e.Type = layer.Symlink
		e.Mode = 0o777
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, name, b)
		if err != nil {
			return fail("readlink", err)
		}
		e.Link = string(b[:n])
	case unix.S_IFCHR:
		e.Type, e.Major, e.Minor = layer.Char, unix.Major(st.Rdev), unix.Minor(st.Rdev)
		if st.Rdev == 0 && r.copied != nil {
			return nil, nil // an overlay lets nobody make one
		}
		if st.Rdev == 0 {
			return &layer.Entry{Path: p, Type: layer.Whiteout}, nil
		}
	case unix.S_IFBLK:
		e.Type, e.Major, e.Minor = layer.Block, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFIFO:
		e.Type = layer.Fifo
	default:
		return nil, nil // a tar has no sockets
	}
	if e.Type != layer.Dir && st.Nlink > 1 {
		e.LinkID = fmt.Sprintf("%x:%x", st.Dev, st.Ino)
		if first, ok := r.links[e.LinkID]; ok {
			e.UID, e.GID = first.UID, first.GID
			old, ok, err := r.below.Lookup(p)
			if err != nil {
				return nil, err
			}
			if !ok || !like(e, &old) {
				e.Type, e.Link = layer.Hardlink, first.Path
				return e, nil
			}
		}
	}
	at := within(dir, name)
	var f *os.File
	if e.Type == layer.File || e.Type == layer.Dir {
		open := name
		if name == "" {
			open = "."
		}
		fd, err := unix.Openat(dir, open, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fail("open", err)
		}
		f, at = os.NewFile(uintptr(fd), p), target{fd: fd}
	}
	from, err := r.attributes(at, e)
	if r.copied != nil && err == nil && r.store.ns.Nested {
		from, err = r.copied.has(dir, name)
	}
	inPlace := false
	if err == nil && r.store.ns.Nested {
		inPlace, err = r.restore(e, st.Size, own || from)
	}
	if err != nil || e.Type != layer.File {
		f.Close() // of nil as well
		if err != nil {
			return fail("read the attributes of", err)
		}
		return e, nil
	}
	r.digesting.begin(f, e)
	if r.store.ns.Single() && !inPlace {
		err = r.moved(e, st.Size, from)
	}
	return e, err
}

// attributes adds a file's extended attributes to its entry, and takes from the file what the entry does not have, unless it is a copy.
// In a copy, which a step can write to as it likes, the marks of overlays mean nothing. It reports whether the file was copied up.
func (r *upperReader) attributes(t target, e *layer.Entry) (copiedUp bool, err error) {
	a, err := r.store.attributesOf(t)
	if err != nil {
		return false, err
	}
	e.Xattrs = a.content
	if r.copied != nil {
		return false, nil
	}
	if a.opaque {
		e.Opaque = e.Type == layer.Dir
	}
	return a.copiedUp, r.store.clean(t, a.foreign, r.base)
}
