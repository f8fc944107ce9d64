package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// copied is what is known of a copy of a root, so that what a step changes in it can be told.
type copied struct {
	// inodes has the inode number of every entry of the tree, a directory's before those of what is in it, which are in the order of
	// Tree.List.
	inodes []uint64
	// until is when the last of them was changed by kiln: what has a later ctime was changed by others.
	until time.Time
}

// mountCopy makes a root for Mount that is a copy of the layers' files.
func (s *Store) mountCopy(ctx context.Context, ids []string, up *Pending, idmap *mount.IDMap) (_ *Root, err error) {
	r := &Root{Refusal: s.refusal}
	p := up
	if up == nil {
		if p, err = s.New(); err != nil {
			return nil, err
		}
		r.copy = p
		defer func() {
			if err != nil {
				p.Close()
			}
		}()
	}
	tree, err := s.Tree(ids)
	if err != nil {
		return nil, err
	}
	c := &copied{}
	err = s.export(ctx, tree, p.fs, func(dir int, name string) error {
		var st unix.Stat_t
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
		c.inodes = append(c.inodes, st.Ino)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("copy the root file system: %w", err)
	}
	if c.until, err = p.tick(); err != nil {
		return nil, fmt.Errorf("copy the root file system: %w", err)
	}
	p.copied = c
	attr := mount.Attr(0)
	if up == nil {
		attr = mount.ReadOnly
	}
	r.File, err = mount.Bind(p.Dir(), attr, idmap)
	return r, err
}

// tick returns a time of the file system's clock that nothing which happens from now on has.
func (p *Pending) tick() (time.Time, error) {
	f, err := os.Create(filepath.Join(p.dir, "tick"))
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	var first time.Time
	for range 10000 {
		var st unix.Stat_t
		if err := errors.Join(f.Chmod(0o600), unix.Fstat(int(f.Fd()), &st)); err != nil {
			return time.Time{}, err
		}
		now := time.Unix(st.Ctim.Unix())
		if first.IsZero() {
			first = now
		}
		if now.After(first) {
			return first, nil
		}
		time.Sleep(time.Millisecond) // nothing tells of the clock's tick, which is 10 ms at most
	}
	return time.Time{}, errors.New("the clock of the file system stands still")
}

// copyReader compares a copy with the tree that it was made from.
type copyReader struct {
	*upperReader
	next int // the number of the tree's entry that comes next
}

// dir compares a directory that is the one that was copied.
func (c *copyReader) dir(path string) error {
	if err := c.ctx.Err(); err != nil {
		return context.Cause(c.ctx)
	}
	names, err := c.at.File().Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	list, err := c.below.List(path)
	if err != nil {
		return err
	}
	for len(names) > 0 || len(list) > 0 {
		order := 0
		switch {
		case len(list) == 0:
			order = -1
		case len(names) == 0:
			order = 1
		default:
			order = strings.Compare(names[0], list[0].Name())
		}
		switch {
		case order < 0:
			err = c.name(names[0], join(path, names[0]))
		case order > 0:
			if err = c.put(&layer.Entry{Path: list[0].Path, Type: layer.Whiteout}); err == nil {
				err = c.skip(&list[0])
			}
		default:
			err = c.both(&list[0])
		}
		if err != nil {
			return err
		}
		if order <= 0 {
			names = names[1:]
		}
		if order >= 0 {
			list = list[1:]
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// skip leaves out an entry of the tree, and what is in it.
func (c *copyReader) skip(e *layer.Entry) error {
	c.next++
	if e.Type != layer.Dir {
		return nil
	}
	if err := ctxio.Ended(c.ctx); err != nil {
		return err
	}
	list, err := c.below.List(e.Path)
	for i := 0; err == nil && i < len(list); i++ {
		err = c.skip(&list[i])
	}
	return err
}

// both compares a name that is there with what was copied there. Whoever moves a file, gives it another name, or changes anything about
// it sets its ctime, and nobody can set it back.
func (c *copyReader) both(was *layer.Entry) error {
	name := was.Name()
	var st unix.Statx_t
	if err := unix.Statx(c.at.Fd(), name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return &os.PathError{Op: "stat", Path: was.Path, Err: err}
	}
	if c.next >= len(c.copied.inodes) {
		return fmt.Errorf("/%s is not among the %d entries that were copied", was.Path, len(c.copied.inodes))
	}
	own := st.Ino == c.copied.inodes[c.next] && !c.copied.later(st.Btime) // the number of a file that was removed is that of another soon
	untouched := own && !c.copied.later(st.Ctime)
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if untouched && !isDir {
		return c.skip(was)
	}
	e, err := c.entry(name, was.Path, own)
	if err != nil {
		return err
	}
	if own && isDir && was.Type == layer.Dir {
		c.next++
		if untouched {
			// Attributes that the disk does not hold are those of the manifest.
			e.Mode, e.UID, e.GID, e.Xattrs = was.Mode, was.UID, was.GID, was.Xattrs
		}
		_, err := c.directory(e, c.dir)
		return err
	}
	if err := c.skip(was); err != nil {
		return err
	}
	if e != nil {
		if err := c.digesting.wait(e); err != nil {
			return err
		}
	}
	switch {
	case e == nil: // no layer can hold it
		return c.put(&layer.Entry{Path: was.Path, Type: layer.Whiteout})
	case !isDir && equal(e, was):
		c.digesting.drop(e)
		return nil
	}
	e.Opaque = isDir
	return c.add(c.linked(e))
}

// later reports whether a time is one that came after the copy; one that is not known, which is zero, is not.
func (c *copied) later(t unix.StatxTimestamp) bool {
	return time.Unix(t.Sec, int64(t.Nsec)).After(c.until)
}

// has reports whether a name in a directory, or for the name "" the directory itself, is of a file that was copied, to this path or
// another; false where the file system does not say when files were made.
func (c *copied) has(dir int, name string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st)
	return st.Mask&unix.STATX_BTIME != 0 && !c.later(st.Btime), err
}

// equal reports whether a file of one name is what it was.
func equal(e, was *layer.Entry) bool {
	return e.Type == was.Type && e.Mode == was.Mode && e.UID == was.UID && e.GID == was.GID && e.Size == was.Size && e.Digest == was.Digest &&
		e.Link == was.Link && e.Major == was.Major && e.Minor == was.Minor && e.ModTime.Equal(was.ModTime) && slices.Equal(e.Xattrs, was.Xattrs)
}

// rewrite puts the files of the layer, as the manifest has them, into a directory of their own in place of the one in which a step left
// them. So nothing else that the step did there is in the layer, and who has a file or directory of it open cannot change the layer.
func (p *Pending) rewrite(ctx context.Context) error {
	m, err := layer.OpenManifest(filepath.Join(p.dir, "manifest"))
	if err != nil {
		return err
	}
	defer m.Close()
	fresh := filepath.Join(p.dir, "fresh")
	if err := errors.Join(os.Mkdir(fresh, 0o755), os.Chmod(fresh, 0o755)); err != nil {
		return err
	}
	root, err := rootfs.Open(fresh)
	if err != nil {
		return err
	}
	if err := p.takeOver(ctx, m, root); err != nil {
		root.Close()
		return err
	}
	left := p.dir + "-left"
	p.fs.Close()
	p.fs = root
	if err := os.Rename(p.Dir(), left); err != nil {
		return err
	}
	p.store.throwAway(left)
	return os.Rename(fresh, p.Dir())
}

// takeOver writes the entries of m to root, with the bytes that the files have in the layer's own directory.
func (p *Pending) takeOver(ctx context.Context, m *layer.Manifest, root *rootfs.Root) error {
	from, to := newDisk(p.fs, p.store), newDisk(root, p.store)
	defer from.close()
	defer to.close()
	for e := range m.All() {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		if err := takeEntry(ctx, from, to, e); err != nil {
			return err
		}
	}
	for e := range m.All() {
		if e.Type != layer.Dir {
			continue
		}
		if err := to.times(e); err != nil {
			return err
		}
	}
	return nil
}

func takeEntry(ctx context.Context, from, to *disk, e *layer.Entry) error {
	made := *e
	if e.Type != layer.File {
		return to.put(&made, nil)
	}
	dir, err := from.parent(e.Path)
	if err != nil {
		return err
	}
	fd, err := openFile(dir.fd(), e.Name())
	if err != nil {
		return &os.PathError{Op: "open", Path: e.Path, Err: err}
	}
	f := os.NewFile(uintptr(fd), e.Path)
	defer f.Close()
	if err := to.put(&made, ctxio.Reader(ctx, f)); err != nil {
		return err
	}
	if made.Digest != e.Digest {
		return fmt.Errorf("/%s was changed after the step: %w", layer.Clip(e.Path), mount.ErrInUse)
	}
	return nil
}
