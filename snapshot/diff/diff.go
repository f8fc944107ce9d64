// Package diff computes the changes that a step made to a root file system, as the entries of a layer.
package diff

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/snapshot/dir"
	"github.com/kilnbuild/kiln/snapshot/roots"
	"golang.org/x/sys/unix"
)

// Begin returns the time from which on files changed by a step are stamped, for Upper.Started. The clock that the kernel uses for
// file times advances once per tick, which is at most 10 ms (CONFIG_HZ=100). If the root file systems below were written in the
// current tick, Begin waits for the next one: otherwise the time of a file made by an earlier step would be taken for this step's
// in one build and not in the next.
func Begin(ctx context.Context, below ...*layer.Stack) (time.Time, error) {
	var last time.Time
	for _, s := range below {
		if at := s.Written(); at.After(last) {
			last = at
		}
	}
	for {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts); err != nil {
			return time.Time{}, os.NewSyscallError("clock_gettime", err)
		}
		now := time.Unix(ts.Unix())
		if now.After(last) || last.Sub(now) > maxTick { // a much later time means that the clock was set back
			return now, nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		case <-time.After(last.Sub(now) + time.Millisecond/2):
		}
	}
}

// maxTick is longer than one tick.
const maxTick = 20 * time.Millisecond

// Upper is the result of a step: the upper directory of its overlay, or the copy of its root.
type Upper struct {
	// Root is the root file system as the step saw it.
	Root *roots.Root
	// Dir is the directory that contains the step's changes, or the copy.
	Dir *rootfs.Root
	// Below is the root file system before the step.
	Below *layer.Stack
	// Base are the flags of the parent of Dir, which files inherit.
	Base dir.Flags
	// Started is the time at which the step began, from Begin. Later file times are taken to come from the clock.
	Started time.Time
}

// Read calls add for the entries of the layer that a step has made, in the order of layer.Compare. From the upper directory of an
// overlay it removes everything that is not in the entries. An overlay also copies up files and directories that end up
// unchanged, or directories of which only the time changed: these are not changes, and are removed.
func Read(ctx context.Context, fs *dir.FS, u Upper, add func(*layer.Entry) error) error {
	d := newDigesting(ctx, add)
	r := &upperReader{
		ctx: ctx, fs: fs, root: u.Root, below: u.Below, base: u.Base, from: u.Started, to: time.Now(), digesting: d,
		links: map[string]*layer.Entry{},
	}
	err := r.all(u.Dir)
	if failed := d.close(); failed != nil {
		err = failed
	}
	return err
}

// all emits the entries of the layer, in the order of layer.Compare.
func (r *upperReader) all(upper *rootfs.Root) error {
	top, err := upper.OpenFile("", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	r.at = dirtree.NewDescent(top)
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
	if r.root.Copied != nil {
		c := &copyReader{upperReader: r, next: 1}
		return c.dir("")
	}
	if same {
		// The layer has no entry for the root directory, and may be stacked on a root with other attributes.
		var names []string
		for _, x := range root.Xattrs {
			names = append(names, x.Name)
		}
		if err := (dir.Target{Fd: r.at.Fd()}).Remove(names); err != nil {
			return err
		}
	}
	return r.restoring(root, r.dir)
}

// put emits an entry that is not a directory.
func (r *upperReader) put(e *layer.Entry) error {
	if err := r.pass(); err != nil {
		return err
	}
	return r.digesting.emit(e)
}

// pass emits the held directories.
func (r *upperReader) pass() error {
	for _, e := range r.held {
		if err := r.digesting.emit(e); err != nil {
			return err
		}
	}
	r.held = r.held[:0]
	return nil
}

// unchanged reports whether a directory is the same as before the step, except for its time. As in BuildKit, a new time alone is
// not a change.
func (r *upperReader) unchanged(e *layer.Entry) (bool, error) {
	old, ok, err := r.below.Lookup(e.Path)
	if err != nil || !ok || e.Opaque || r.hidden {
		return false, err
	}
	return old.Type == layer.Dir && old.Mode == e.Mode && old.UID == e.UID && old.GID == e.GID && slices.Equal(old.Xattrs, e.Xattrs), nil
}

type upperReader struct {
	fs       *dir.FS
	ctx      context.Context
	root     *roots.Root // as the step saw it; unless Copied, the layer is an upper directory
	below    *layer.Stack
	base     dir.Flags // of the parent of the layer's directory
	from, to time.Time
	at       *dirtree.Descent // the directory being read
	// hidden reports that nothing of below is visible in the current directory: it, or one of its parents, is opaque or new.
	hidden    bool
	links     map[string]*layer.Entry // the first name of each file with several names, by LinkID
	digesting *digesting
	// lost are the files of below that no longer exist; nil until it is computed. See moved.
	lost map[lostKey][]layer.Entry
	// removed reports that something was removed from the current directory, which changed its time.
	removed bool
	// held are directories, each in the one before, in which no change was found yet: they may be unchanged.
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
		if err := r.name(name, layer.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// name reads a name in the current directory, and everything below it.
func (r *upperReader) name(name, p string) error {
	if msg := layer.BadName(name); msg != "" {
		return &layer.PathError{Path: p, Msg: msg}
	}
	if len(p) >= layer.MaxPath {
		return &layer.PathError{Path: p, Msg: layer.PathTooLong}
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

// drop removes from the layer's directory a file that cannot be represented in a layer. The file that it replaced is deleted.
func (r *upperReader) drop(name, p string) error {
	if r.root.Copied != nil {
		return nil // files of a copy that are not in the manifest are ignored
	}
	if err := r.remove(name); err != nil || r.hidden {
		return err
	}
	if _, ok, err := r.below.Lookup(p); err != nil || !ok {
		return err
	}
	if err := unix.Mknodat(r.at.Fd(), name, unix.S_IFCHR, 0); err != nil {
		return &layer.FileError{Op: "mknod", Path: p, Err: err}
	}
	return r.put(&layer.Entry{Path: p, Type: layer.Whiteout})
}

// remove removes from the layer's directory a file that is not a change.
func (r *upperReader) remove(name string) error {
	r.removed = true
	return dirtree.RemoveAt(r.at.Fd(), name)
}

// same reports whether an entry that is not a directory is the same as before the step.
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

// like is like equal, but compares only what is known without reading the file.
func like(e, was *layer.Entry) bool {
	return e.Type == was.Type && e.Mode == was.Mode && e.UID == was.UID && e.GID == was.GID && e.ModTime.Equal(was.ModTime)
}

// linked returns the entry to emit for e: a hard link if another name of the file was emitted before.
func (r *upperReader) linked(e *layer.Entry) *layer.Entry {
	if e.LinkID == "" || e.Type == layer.Hardlink {
		return e
	}
	first, ok := r.links[e.LinkID]
	if !ok {
		r.links[e.LinkID] = e
		return e
	}
	return &layer.Entry{
		Path: e.Path, Type: layer.Hardlink, Link: first.Path, Mode: e.Mode, UID: first.UID, GID: first.GID, ModTime: e.ModTime, Clock: e.Clock,
	}
}

// add emits an entry, and everything below it.
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

// directory emits a directory and the entries that read finds in it. If there are none, and the directory is unchanged, it emits
// nothing and returns true.
func (r *upperReader) directory(e *layer.Entry, read func(path string) error) (same bool, err error) {
	r.held = append(r.held, e)
	if err := r.at.Enter(e.Name()); err != nil {
		return false, &layer.FileError{Op: "open", Path: e.Path, Err: err}
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

// restoring reads a directory, and restores its time if something was removed from it.
func (r *upperReader) restoring(e *layer.Entry, read func(path string) error) error {
	above := r.removed
	r.removed = false
	err := read(e.Path)
	if r.removed && err == nil {
		err = dir.SetTime(r.at.Fd(), "", e.ModTime)
	}
	r.removed = above
	return err
}

// entry returns the entry for a name in the current directory or, for "", for the directory itself; nil for a file that cannot be
// represented in a layer. In an overlay it also removes the file's attributes that are not in the entry. own reports, for a copy,
// that the file is the one that was copied to this path.
func (r *upperReader) entry(name, p string, own bool) (*layer.Entry, error) {
	var st unix.Stat_t
	in, flags := r.at.Fd(), unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Fstatat(in, name, &st, flags); err != nil {
		return nil, &layer.FileError{Op: "stat", Path: p, Err: err}
	}
	e := &layer.Entry{Path: p, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec)}
	e.Clock = !e.ModTime.Before(r.from) && !e.ModTime.After(r.to)
	fail := func(op string, err error) (*layer.Entry, error) {
		return nil, &layer.FileError{Op: op, Path: p, Err: err}
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
		n, err := unix.Readlinkat(in, name, b)
		if err != nil {
			return fail("readlink", err)
		}
		e.Link = string(b[:n])
	case unix.S_IFCHR:
		e.Type, e.Major, e.Minor = layer.Char, unix.Major(st.Rdev), unix.Minor(st.Rdev)
		if st.Rdev == 0 && r.root.Copied != nil {
			return nil, nil // cannot be created in an overlay
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
	at := dir.Within(in, name)
	var f *os.File
	if e.Type == layer.File || e.Type == layer.Dir {
		open := name
		if name == "" {
			open = "."
		}
		fd, err := unix.Openat(in, open, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fail("open", err)
		}
		f, at = os.NewFile(uintptr(fd), p), dir.Target{Fd: fd}
	}
	from, err := r.attributes(at, e)
	if r.root.Copied != nil && err == nil && r.fs.NS.Nested {
		from, err = r.root.Copied.Has(in, name)
	}
	inPlace := false
	if err == nil && r.fs.NS.Nested {
		inPlace, err = r.restore(e, st.Size, own || from)
	}
	if err != nil || e.Type != layer.File {
		f.Close() // f may be nil
		if err != nil {
			return fail("read the attributes of", err)
		}
		return e, nil
	}
	r.digesting.begin(f, e)
	if r.fs.NS.Single() && !inPlace {
		err = r.moved(e, st.Size, from)
	}
	return e, err
}

// attributes adds a file's extended attributes to its entry, and removes from the file those that the entry does not have, unless
// it is a copy. In a copy, where a step can write any attribute, the marks of overlays mean nothing. It reports whether the file
// was copied up.
func (r *upperReader) attributes(t dir.Target, e *layer.Entry) (copiedUp bool, err error) {
	a, err := r.fs.Attributes(t)
	if err != nil {
		return false, err
	}
	e.Xattrs = a.Content
	if r.root.Copied != nil {
		return false, nil
	}
	if a.Opaque {
		e.Opaque = e.Type == layer.Dir
	}
	return a.CopiedUp, r.fs.Clean(t, a.Foreign, r.base)
}
