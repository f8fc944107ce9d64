package roots

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/snapshot/dir"
	"golang.org/x/sys/unix"
)

// Copied is what is known of a copy of a root, so that what a step changes in it can be told.
type Copied struct {
	// Inodes has the inode number of every entry of the tree, that of a directory before those of what is in it, which are in the order of
	// layer.Tree's List.
	Inodes []uint64
	// until is when the last of them was changed by kiln: what has a later ctime was changed by others.
	until time.Time
}

// mountCopy makes a root for Mount that is a copy of the files of a tree.
func mountCopy(ctx context.Context, fs *dir.FS, tree layer.Tree, up *Upper, idmap *mount.IDMap) (_ *Root, err error) {
	r := &Root{Refusal: fs.TryOverlay()}
	attr := mount.Attr(0)
	if up == nil {
		attr = mount.ReadOnly
		if up, err = r.upperForCopy(fs); err != nil {
			return nil, err
		}
		defer func() {
			up.Root.Close()
			if err != nil {
				_ = dirtree.Remove(r.scratch)
			}
		}()
	}
	c := &Copied{}
	err = export(ctx, fs, tree, up.Root, func(dir int, name string) error {
		var st unix.Stat_t
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
		c.Inodes = append(c.Inodes, st.Ino)
		return err
	})
	if err == nil {
		c.until, err = tick(up.Beside)
	}
	if err != nil {
		return nil, fmt.Errorf("copy the root file system: %w", err)
	}
	r.Copied = c
	r.File, err = mount.Bind(up.Dir, attr, idmap)
	return r, err
}

// upperForCopy makes a directory for a copy that goes with the root.
func (r *Root) upperForCopy(fs *dir.FS) (*Upper, error) {
	beside, err := os.MkdirTemp(fs.Tmp, "root-")
	if err != nil {
		return nil, err
	}
	r.scratch = beside
	up := &Upper{Dir: filepath.Join(beside, "fs"), Beside: beside}
	if err = errors.Join(os.Mkdir(up.Dir, 0o755), os.Chmod(up.Dir, 0o755)); err == nil {
		up.Root, err = rootfs.Open(up.Dir)
	}
	if err != nil {
		return nil, errors.Join(err, dirtree.Remove(beside))
	}
	return up, nil
}

// tick returns a time of the file system's clock that nothing which happens from now on has.
func tick(dir string) (time.Time, error) {
	f, err := os.Create(filepath.Join(dir, "tick"))
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

// Later reports whether a time is one that came after the copy; one that is not known, which is zero, is not.
func (c *Copied) Later(t unix.StatxTimestamp) bool {
	return time.Unix(t.Sec, int64(t.Nsec)).After(c.until)
}

// Has reports whether a name in a directory, or for the name "" the directory itself, is of a file that was copied, to this path or
// another; false where the file system does not say when files were made.
func (c *Copied) Has(dir int, name string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st)
	return st.Mask&unix.STATX_BTIME != 0 && !c.Later(st.Btime), err
}
