// Package scratch gives a process a directory of its own for unfinished work, and removes those that dead processes have left
// behind. It does not know what is in them.
package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/lock"
	"golang.org/x/sys/unix"
)

const prefix = "process-"

// Dir is a directory below tmp that belongs to this process until Close, or until the process dies for any reason.
type Dir struct {
	path string
	lock *lock.Lock
	dead bool
	left []error
}

// FoundDead reports whether Open found the directory of a dead process.
func (d *Dir) FoundDead() bool { return d.dead }

// Left returns what could not be removed of the directories of dead processes. Each is a *dirtree.RemoveError.
func (d *Dir) Left() []error { return d.left }

// Open makes the directory in tmp, which exists, and removes those of processes that are dead.
func Open(tmp string) (*Dir, error) {
	d, err := create(tmp)
	if err != nil {
		return nil, fmt.Errorf("make a temporary directory: %w", err)
	}
	// Files in here must get exactly the modes they are created with, even if the root directory has a default access control list,
	// acl(5).
	err = unix.Removexattr(d.path, "system.posix_acl_default")
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
		return nil, errors.Join(fmt.Errorf("remove the default access control list of a temporary directory: %w", err), d.Close())
	}
	Spread(d.path)
	d.sweep()
	return d, nil
}

// create makes the directory and locks it. Until it is locked another process may take it for that of a dead one and
// remove it; then there is another try.
func create(tmp string) (*Dir, error) {
	for tries := 0; ; tries++ {
		path, err := os.MkdirTemp(tmp, prefix)
		if err != nil {
			return nil, err
		}
		l, err := lock.TryExisting(path, false)
		if err == nil {
			return &Dir{path: path, lock: l}, nil
		}
		if tries == maxTries || !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(err, dirtree.Remove(path))
		}
	}
}

// maxTries limits how often other processes may win the race: each removes dead ones when it begins and when it ends.
const maxTries = 1000

// Spread asks ext4 to put each directory that is made in dir into a part of the disk of its own (chattr +T, ioctl_iflags(2)).
// Without that all of them go where kiln's root is, and the search for a free inode in parts of the disk that are full costs
// more than half a millisecond for every file. Other file systems have no such flag and no such cost.
func Spread(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}

// topDir is FS_TOPDIR_FL of linux/fs.h.
const topDir = 0x20000

// Path returns the directory.
func (d *Dir) Path() string { return d.path }

// Close removes the directory and everything in it, and what dead processes have left meanwhile: one that was killed
// shortly before Open may have had children that held its lock while they were dying.
func (d *Dir) Close() error {
	// The lock goes last: nobody takes the directory for that of a dead process while it is being removed.
	err := errors.Join(dirtree.Remove(d.path), d.lock.Release())
	d.sweep()
	return err
}

// sweep removes the directories of dead processes. What cannot be removed now only takes space; the next
// process tries again.
func (d *Dir) sweep() {
	d.left = nil
	tmp := filepath.Dir(d.path)
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(tmp, e.Name())
		if path == d.path || !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		l, err := lock.TryExisting(path, false)
		if err != nil {
			continue
		}
		d.dead = true
		// Nobody can lock a directory that no longer exists, so a process that was just about to lock it makes another.
		if err := dirtree.Remove(path); err != nil {
			d.left = append(d.left, err)
		}
		l.Release()
	}
}
