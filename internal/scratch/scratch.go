// Package scratch gives a process a directory of its own for what is unfinished, and clears away what dead processes left
// in theirs. It does not know what is kept there.
package scratch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/lock"
	"golang.org/x/sys/unix"
)

const (
	prefix   = "process-"
	lockName = "lock"
)

// Dir is a directory below tmp that belongs to this process until Close, or until the process dies however it does.
type Dir struct {
	path string
	lock *lock.Lock
}

// Open makes the directory in tmp, which exists, and removes those of processes that are dead.
func Open(tmp string) (*Dir, error) {
	// The directory is made under a name that sweeping does not look at, so that nobody finds it before it is locked.
	path, err := os.MkdirTemp(tmp, "new-"+prefix)
	if err != nil {
		return nil, fmt.Errorf("make a temporary directory: %w", err)
	}
	l, err := lock.Try(filepath.Join(path, lockName), false)
	if err != nil {
		os.RemoveAll(path)
		return nil, fmt.Errorf("make a temporary directory: %w", err)
	}
	own := filepath.Join(tmp, prefix+strings.TrimPrefix(filepath.Base(path), "new-"+prefix))
	if err := os.Rename(path, own); err != nil {
		os.RemoveAll(path)
		return nil, fmt.Errorf("make a temporary directory: %w", err)
	}
	spread(own)
	sweep(tmp, own)
	return &Dir{path: own, lock: l}, nil
}

// spread asks ext4 to put each directory that is made in dir into a part of the disk of its own (chattr +T, ioctl_iflags(2)).
// Without that all of them go where kiln's root is, and the search for a free inode in parts of the disk that are full costs
// more than half a millisecond for every file. Other file systems have no such flag and no such cost.
func spread(dir string) {
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

// Close removes the directory and everything in it.
func (d *Dir) Close() error {
	// The lock goes last, with its file already removed: nobody can take a directory for dead that is half removed.
	return errors.Join(removeAll(d.path), d.lock.Release())
}

// sweep removes the directories of dead processes. What cannot be removed now is only a matter of space; the next
// process tries again.
func sweep(tmp, own string) {
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(tmp, e.Name())
		name := strings.TrimPrefix(e.Name(), "new-")
		if path == own || !strings.HasPrefix(name, prefix) {
			continue
		}
		if name != e.Name() && young(path) {
			continue
		}
		l, err := lock.Try(filepath.Join(path, lockName), false)
		if err != nil {
			continue
		}
		removeAll(path)
		l.Release()
	}
}

// young reports whether a directory that has not got its final name may still be about to get it.
func young(path string) bool {
	var st unix.Stat_t
	var now unix.Timespec
	if unix.Lstat(path, &st) != nil || unix.ClockGettime(unix.CLOCK_REALTIME, &now) != nil {
		return true
	}
	age := now.Sec - st.Ctim.Sec
	return age >= 0 && age < 60
}

// removeAll is os.RemoveAll for trees in which directories may lack permissions that their owner, not being root, needs.
func removeAll(path string) error {
	if err := os.RemoveAll(path); err == nil {
		return nil
	}
	filepath.WalkDir(path, func(p string, e os.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}
