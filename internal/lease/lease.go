// Package lease lets processes rely on what a shared directory holds, while others remove what is not in use. It does not know what
// that is.
//
// An item is a file or directory with a name of its own. A process that relies on it holds its lock, shared; a process that makes one
// locks it before it gets its name. Only a process that holds the exclusive lock removes an item, by renaming it. So there is no clock,
// no list, and nothing to clean up after a process that died.
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

// grain is how exactly it is known when something was used last: so seldom its time is written, so that a build in which
// nothing runs writes nothing.
const grain = time.Hour

// patience is how long Take waits for one who is just removing the thing, which takes microseconds.
const patience = 5 * time.Second

// Take holds the thing called path and notes that it is used. The error is fs.ErrNotExist where there is none. Release may be
// left to the end of the process.
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

// Used notes that the thing called path, which info is of unless it is nil, is used now. A time that cannot be written is only old.
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

// Remove takes the thing called path away, into the directory trash on the same file system, and returns where it is there. It
// returns false if somebody uses the thing, or it is gone already.
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

// Trash is Remove of what needs no lock, or whose lock the caller has.
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

// InUse reports whether somebody holds the thing called path.
func InUse(path string) bool {
	l, err := lock.TryExisting(path, false)
	if err == nil {
		l.Release()
	}
	return errors.Is(err, unix.EWOULDBLOCK)
}
