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
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"golang.org/x/sys/unix"
)

// copied is what is known of a copy of a root, so that what a step changes in it can be told.
type copied struct {
	// inodes has the inode number of every entry of the tree, a directory's before those of what is in it, which are in the order of
	// Tree.List.
	inodes []uint64
	// until is when the last of them was changed by kiln: what has a later ctime was changed by others.
	until time.Time
	// root is the time of the root directory after the step.
	root time.Time
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
	copied *copied
	next   int // the number of the tree's entry that comes next
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
	var st unix.Stat_t
	if err := unix.Fstatat(c.at.Fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: was.Path, Err: err}
	}
	if c.next >= len(c.copied.inodes) {
		return fmt.Errorf("/%s is not among the %d entries that were copied", was.Path, len(c.copied.inodes))
	}
	own := st.Ino == c.copied.inodes[c.next]
	untouched := own && !time.Unix(st.Ctim.Unix()).After(c.copied.until)
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if untouched && !isDir {
		return c.skip(was)
	}
	e, err := c.entry(name, was.Path)
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
	case e == nil: // a socket, which no layer can hold
		return c.put(&layer.Entry{Path: was.Path, Type: layer.Whiteout})
	case !isDir && equal(e, was):
		c.digesting.drop(e)
		return nil
	}
	e.Opaque = isDir
	return c.add(c.linked(e))
}

// equal reports whether a file of one name is what it was.
func equal(e, was *layer.Entry) bool {
	return e.Type == was.Type && e.Mode == was.Mode && e.UID == was.UID && e.GID == was.GID && e.Size == was.Size && e.Digest == was.Digest &&
		e.Link == was.Link && e.Major == was.Major && e.Minor == was.Minor && e.ModTime.Equal(was.ModTime) && slices.Equal(e.Xattrs, was.Xattrs)
}

// strip removes from a copy what is no entry of the layer.
func (p *Pending) strip(ctx context.Context) error {
	m, err := layer.OpenManifest(filepath.Join(p.dir, "manifest"))
	if err != nil {
		return err
	}
	defer m.Close()
	dir, err := p.fs.OpenFile("", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	at := dirtree.NewDescent(dir)
	defer at.Close()
	if err := strip(ctx, m, at, ""); err != nil {
		return err
	}
	return setTime(at.Fd(), "", p.copied.root)
}

// strip removes from the directory that at is at, whose path in the layer is path, what is no entry of m.
func strip(ctx context.Context, m *layer.Manifest, at *dirtree.Descent, path string) error {
	names, err := at.File().Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		p := join(path, name)
		e, ok := m.Lookup(p)
		if !ok || e.Type == layer.Whiteout {
			if err := dirtree.RemoveAt(at.Fd(), name); err != nil {
				return err
			}
			continue
		}
		if e.Type != layer.Dir {
			continue
		}
		if err := at.Enter(name); err != nil {
			return &os.PathError{Op: "open", Path: p, Err: err}
		}
		if err := strip(ctx, m, at, p); err != nil {
			return err
		}
		if err := errors.Join(setTime(at.Fd(), "", e.ModTime), at.Leave()); err != nil {
			return err
		}
	}
	return nil
}
