package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// clockSlack is how far the times that the kernel gives files may lie before the clock's: it stamps them once a tick,
// which is 10 ms at the slowest (CONFIG_HZ=100).
const clockSlack = 20 * time.Millisecond

// CommitChanges reads what a step left in a pending layer that was given to Mount for the root file system
// below, and puts it into the store, or takes a layer of the same identity that is there already. Times between started and now are the
// clock's. An overlay also copies files and directories up in which, in the end, nothing was changed, or of a directory nothing but its own
// time: those are no changes, and are taken away.
func (p *Pending) CommitChanges(ctx context.Context, below layer.Tree, started time.Time) (Committed, error) {
	w, err := p.Manifest()
	if err != nil {
		return Committed{}, err
	}
	d := newDigesting(ctx, w.Add)
	r := &upperReader{ctx: ctx, store: p.store, below: below, from: started.Add(-clockSlack), to: time.Now(), digesting: d, links: map[string]string{}}
	err = r.all(p)
	if failed := d.close(); failed != nil {
		err = failed
	}
	if err != nil {
		w.Abort()
		return Committed{}, fmt.Errorf("read the layer: %w", err)
	}
	sum, err := w.Close(time.Now())
	if err != nil {
		return Committed{}, fmt.Errorf("write a layer's manifest: %w", err)
	}
	if p.copied != nil {
		if err := p.strip(ctx); err != nil {
			return Committed{}, fmt.Errorf("take the copy from the layer: %w", err)
		}
	}
	return p.CommitWritten(sum, "")
}

// all emits what is in the layer, in the order of layer.Compare.
func (r *upperReader) all(p *Pending) error {
	dir, err := p.fs.OpenFile("", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	r.at = dirtree.NewDescent(dir)
	defer r.at.Close()
	root, err := r.entry("", "")
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
	if p.copied == nil {
		return r.restoring(root, r.dir)
	}
	p.copied.root = root.ModTime
	c := &copyReader{upperReader: r, copied: p.copied, next: 1}
	return c.dir("")
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
	below    layer.Tree
	from, to time.Time
	at       *dirtree.Descent // the directory that is read
	// hidden says that nothing of below is seen in the directory that is read: it is opaque or new, or one above it is.
	hidden    bool
	links     map[string]string // the first path of a file with several names, by LinkID
	digesting *digesting
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
	e, err := r.entry(name, p)
	if err != nil || e == nil {
		return err
	}
	if same, err := r.same(e); err != nil {
		return err
	} else if same {
		return r.remove(name)
	}
	return r.add(r.linked(e))
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
		r.links[e.LinkID] = e.Path
		return e
	}
	return &layer.Entry{Path: e.Path, Type: layer.Hardlink, Link: first, Mode: e.Mode, UID: e.UID, GID: e.GID, ModTime: e.ModTime, Clock: e.Clock}
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

// entry describes a name in the directory, or for the name "" the directory itself; nil for what no layer can hold.
func (r *upperReader) entry(name, p string) (*layer.Entry, error) {
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
		if st.Rdev == 0 {
			return &layer.Entry{Path: p, Type: layer.Whiteout}, nil
		}
	case unix.S_IFBLK:
		e.Type, e.Major, e.Minor = layer.Block, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFIFO:
		e.Type = layer.Fifo
	case unix.S_IFSOCK:
		return nil, nil // a tar has no sockets
	}
	if e.Type != layer.Dir && st.Nlink > 1 {
		e.LinkID = fmt.Sprintf("%x:%x", st.Dev, st.Ino)
		if first, ok := r.links[e.LinkID]; ok {
			old, ok, err := r.below.Lookup(p)
			if err != nil {
				return nil, err
			}
			if !ok || !like(e, &old) {
				e.Type, e.Link = layer.Hardlink, first
				return e, nil
			}
		}
	}
	switch e.Type {
	case layer.Symlink, layer.Fifo:
		if !r.store.ns.Single() {
			break
		}
		if old, ok, err := r.below.Lookup(p); err != nil {
			return nil, err
		} else if ok && old.Type == e.Type && old.Link == e.Link {
			e.UID, e.GID = old.UID, old.GID
		}
	case layer.File, layer.Dir:
		how := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
		at := name
		if name == "" {
			at = "."
		}
		fd, err := unix.Openat(dir, at, how, 0)
		if err != nil {
			return fail("open", err)
		}
		f := os.NewFile(uintptr(fd), p)
		if err := r.store.xattrs(fd, e); err != nil {
			f.Close()
			return fail("read extended attributes of", err)
		}
		if e.Type == layer.File {
			r.digesting.begin(f, e)
		} else {
			f.Close()
		}
	}
	return e, nil
}

// xattrs adds a file's extended attributes, and what they hold, to its entry.
func (s *Store) xattrs(fd int, e *layer.Entry) error {
	names, err := listXattrs(fd)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == s.opaque {
			e.Opaque = true
			continue
		}
		if !layer.KeepXattr(name) {
			continue
		}
		value, err := getXattr(fd, name)
		if err != nil {
			return err
		}
		if s.ns.Nested {
			if held, err := restore(e, name, value); err != nil {
				return err
			} else if held {
				continue
			}
		}
		e.Xattrs = append(e.Xattrs, layer.Xattr{Name: name, Value: value})
	}
	return nil
}

// listXattrs returns the names of a file's extended attributes, sorted; none where the file system has no such thing.
func listXattrs(fd int) ([]string, error) {
	n, err := unix.Flistxattr(fd, nil)
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if n, err = unix.Flistxattr(fd, b); err != nil {
		return nil, err
	}
	names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	slices.Sort(names)
	return names, nil
}

func getXattr(fd int, name string) (string, error) {
	b := make([]byte, 256)
	n, err := unix.Fgetxattr(fd, name, b)
	if errors.Is(err, unix.ERANGE) {
		b = make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err = unix.Fgetxattr(fd, name, b)
	}
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}
