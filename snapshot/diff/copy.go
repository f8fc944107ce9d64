package diff

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// copyReader compares a copy with the tree it was made from.
type copyReader struct {
	*upperReader
	next int // index of the tree's next entry
}

// dir compares a directory with the one it was copied from.
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
			err = c.name(names[0], layer.Join(path, names[0]))
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

// skip skips an entry of the tree and everything below it.
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

// both compares an existing file with the entry that was copied to its path. Moving a file, linking it, or changing anything
// about it sets its ctime, which cannot be set back.
func (c *copyReader) both(was *layer.Entry) error {
	name := was.Name()
	var st unix.Statx_t
	if err := unix.Statx(c.at.Fd(), name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return &layer.FileError{Op: "stat", Path: was.Path, Err: err}
	}
	if c.next >= len(c.root.Copied.Inodes) {
		return fmt.Errorf("/%s is not one of the %d entries that were copied", was.Path, len(c.root.Copied.Inodes))
	}
	// The inode number of a removed file is soon reused.
	own := st.Ino == c.root.Copied.Inodes[c.next] && !c.root.Copied.Later(st.Btime)
	untouched := own && !c.root.Copied.Later(st.Ctime)
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
			// Attributes that cannot be represented on disk are those in the manifest.
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
	case e == nil: // not representable in a layer
		return c.put(&layer.Entry{Path: was.Path, Type: layer.Whiteout})
	case !isDir && equal(e, was):
		c.digesting.drop(e)
		return nil
	}
	e.Opaque = isDir
	return c.add(c.linked(e))
}

// equal reports whether a file is unchanged.
func equal(e, was *layer.Entry) bool {
	return e.Type == was.Type && e.Mode == was.Mode && e.UID == was.UID && e.GID == was.GID && e.Size == was.Size && e.Digest == was.Digest &&
		e.Link == was.Link && e.Major == was.Major && e.Minor == was.Minor && e.ModTime.Equal(was.ModTime) && slices.Equal(e.Xattrs, was.Xattrs)
}
