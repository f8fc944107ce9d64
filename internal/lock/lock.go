// Package lock holds files locked by flock(2) between processes, so that the kernel ends a lock with its holder however
// that dies. It does not know what a lock protects.
package lock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Waiting is by polling, because a blocked flock(2) cannot be cancelled. The first pauses are short since most locks are
// held for microseconds; the longest is what a waiter loses at most after the holder's end.
const (
	firstPause = 500 * time.Microsecond
	maxPause   = 20 * time.Millisecond
)

// Lock is a held lock. The zero value holds nothing.
type Lock struct {
	file *os.File
}

// Acquire locks the file called path, which is made (mode 0600) when it is absent and whose directory must exist, and
// waits until nobody holds it in a way that excludes this one: any number of holders share it when shared is true, else
// there is one. It returns ctx's error when ctx ends first, and the error of open(2) or flock(2), as where the file
// system knows no locks.
//
// Locks belong to the open file, so two calls in one process exclude each other as two processes do. Acquire may race
// with Remove: what it returns is always the lock of the file that path names now.
func Acquire(ctx context.Context, path string, shared bool) (*Lock, error) {
	pause := firstPause
	for {
		l, err := Try(path, shared)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for lock %s: %w", path, context.Cause(ctx))
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// Try is Acquire that does not wait: it returns an error that is unix.EWOULDBLOCK when the lock is held elsewhere.
func Try(path string, shared bool) (*Lock, error) {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	return try(path, unix.O_RDWR|unix.O_CREAT, how)
}

// TryExisting is Try for a file or directory that it does not make: the error is fs.ErrNotExist when there is none.
func TryExisting(path string, shared bool) (*Lock, error) {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	return try(path, unix.O_RDONLY|unix.O_NONBLOCK, how)
}

func try(path string, flags, how int) (*Lock, error) {
	for {
		f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		if err := flock(f, how|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		same, err := names(path, f)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("check lock: %w", err)
		}
		if same {
			return &Lock{file: f}, nil
		}
		f.Close() // its holder removed it while we were opening it: nobody else will ever see this lock
	}
}

// File returns the locked file, open for reading, and by Try and Acquire also for writing; it stays the Lock's and is closed by Release.
func (l *Lock) File() *os.File { return l.file }

// Release ends the lock and leaves the file where it is. Releasing twice, or the zero Lock, does nothing.
func (l *Lock) Release() error {
	if l == nil || l.file == nil {
		return nil
	}
	f := l.file
	l.file = nil
	return f.Close()
}

// Remove removes the file while the lock, which must be exclusive, is held, and releases it. A file that is gone already
// is no error.
func (l *Lock) Remove() error {
	if l == nil || l.file == nil {
		return nil
	}
	err := os.Remove(l.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, l.Release())
}

// Sweep removes files of dir whose lock nobody holds, those of processes that died before they called Remove, but not the
// files that are to be kept. What it cannot remove is only a matter of space.
func Sweep(dir string, keep ...string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if slices.Contains(keep, e.Name()) {
			continue
		}
		if l, err := Try(filepath.Join(dir, e.Name()), false); err == nil {
			_ = l.Remove() // a matter of space, as above
		}
	}
}

// flock is flock(2) without interruptions.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// names tells whether path is still the name of the open file f.
func names(path string, f *os.File) (bool, error) {
	held, err := f.Stat()
	if err != nil {
		return false, err
	}
	now, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(held, now), nil
}
