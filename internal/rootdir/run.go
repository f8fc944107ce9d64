package rootdir

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"github.com/kilnbuild/kiln/internal/thread"
	"golang.org/x/sys/unix"
)

// places are directories that one can do without: Run has the root directory there, and git and ssh need none of them. Nobody but root
// can replace one. Most machines have the first.
var places = []string{"/sys", "/mnt", "/srv", "/media", "/opt", "/boot"}

// Run is cmd.Run for a program that works in the root directory, once that was entered. A program such as git makes relative names
// absolute, and then its files are wherever the path of its working directory leads. So the program has a mount namespace of
// its own, in which the root directory is where nobody can take its place; its working directory is that, unless cmd has
// another. The thread that starts the program lives as long as that, as PDEATHSIG wants it (prctl(2)).
func Run(cmd *exec.Cmd) (err error) {
	if entered.root == "" {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return cmd.Run()
	}
	thread.Do(func() {
		if err = settle(); err == nil {
			err = cmd.Run()
		}
	})
	return err
}

// settle gives the thread a mount namespace in which its working directory, the root directory, is at one of the places.
func settle() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	for _, place := range places {
		err := unix.Mount(".", place, "", unix.MS_BIND|unix.MS_REC, "")
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("mount the root directory at %s: %w", place, err)
		}
		return os.NewSyscallError("chdir", unix.Chdir(place))
	}
	return fmt.Errorf("mount the root directory: there is none of the directories %q", places)
}
