// Package lease protects items in a shared directory from removal by other processes while they are in use. It does not know what
// the items are.
//
// An item is a file or directory with its own name. A process that uses it holds a shared lock on it; a process that creates one
// locks it before giving it its name. To remove an item, a process takes the exclusive lock and renames the item. So there is no
// clock, no list, and no cleanup after a process that died.
package lease

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnbuild/kiln/internal/lock"
	"golang.org/x/sys/unix"
)

// grain is the accuracy of the time of last use. It is updated this rarely so that a build in which nothing runs writes nothing.
const grain = time.Hour

// patience is how long Take waits for a process that is removing the item, which takes microseconds.
const patience = 5 * time.Second

// Take locks the item at path for use, and records the time. The error wraps fs.ErrNotExist if it does not exist. The lock need
// not be released before the process ends.
func Take(path string) (*lock.Lock, error) {
	pause := 100 * time.Microsecond
	for waited := time.Duration(0); ; {
		l, err := lock.TryExisting(path, true)
		if err == nil {
			if info, err := l.File().Stat(); err == nil {
				Used(path, info)
			}
			return l, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || waited > patience {
			return nil, err
		}
		time.Sleep(pause)
		waited += pause
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// Used records that the item at path is used now. info, unless nil, is its file information. Errors are ignored: then the time
// stays old.
func Used(path string, info fs.FileInfo) {
	if info == nil {
		var err error
		if info, err = os.Lstat(path); err != nil {
			return
		}
	}
	if now := time.Now(); now.Sub(info.ModTime()) > grain {
		times := []unix.Timespec{unix.NsecToTimespec(now.UnixNano()), unix.NsecToTimespec(now.UnixNano())}
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW)
	}
}

// Remove moves the item at path into the directory trash on the same file system, and returns its new path. It returns false if
// the item is in use or does not exist.
func Remove(path, trash string) (gone string, ok bool, err error) {
	l, err := lock.TryExisting(path, false)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	defer l.Release()
	return Trash(path, trash)
}

// Trash is like Remove for an item that needs no lock, or whose lock the caller holds.
func Trash(path, trash string) (gone string, ok bool, err error) {
	dir, err := os.MkdirTemp(trash, "trash-")
	if err != nil {
		return "", false, err
	}
	gone = filepath.Join(dir, filepath.Base(path))
	err = os.Rename(path, gone)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, os.Remove(dir)
	}
	return gone, err == nil, err
}

// InUse reports whether any process uses the item at path.
func InUse(path string) bool {
	l, err := lock.TryExisting(path, false)
	if err == nil {
		l.Release()
	}
	return errors.Is(err, unix.EWOULDBLOCK)
}
