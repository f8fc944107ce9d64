package mount

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse says that a file of a file system is still open for writing, or is open and removed.
var ErrInUse = errors.New("a process that is still running has a file of it open")

// sealTries is how often Seal tries while the file system is in use, with pauses from sealPause on that double each time: 2 s in all. The
// kernel closes some files of a process that has ended later, as those in flight between sockets (net/unix/garbage.c).
const (
	sealTries = 12
	sealPause = time.Millisecond
)

// Seal makes the file system that f is the root of read-only, with all its mounts and for everybody: whoever has a directory of it
// open, also by a descriptor that came through a socket, can make, change and remove nothing there any more. It takes the
// privilege to mount the file system. The error is ErrInUse, wrapped, where a file is open for writing, since what has it open could go on.
func Seal(ctx context.Context, f *os.File) error {
	pause := sealPause
	for try := 1; ; try++ {
		err := readOnly(f)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if try == sealTries {
			return ErrInUse
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		pause *= 2
	}
}

// readOnly reconfigures the file system that f is the root of. A context that has failed once takes no more commands.
func readOnly(f *os.File) error {
	c := &fscontext{fs: f.Name()}
	var err error
	if c.fd, err = unix.Fspick(int(f.Fd()), "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH); err != nil {
		return &Error{FS: c.fs, Call: "fspick", Err: err}
	}
	defer c.close()
	if err := c.set("ro", ""); err != nil {
		return err
	}
	return c.check(unix.FsconfigReconfigure(c.fd), "fsconfig reconfigure")
}

// whileBusy calls f again while its error is EBUSY, as Seal does. A process that is being started, for another step or as another program,
// has the files of this one open for a moment, with those that are being written.
func whileBusy(f func() error) error {
	pause := sealPause
	for try := 1; ; try++ {
		err := f()
		if !errors.Is(err, unix.EBUSY) || try == sealTries {
			return err
		}
		time.Sleep(pause)
		pause *= 2
	}
}
