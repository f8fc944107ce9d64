package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/thread"
)

// What kernels before 6.8 (the overlay's layers one by one) and 6.15 (bind mounts of what is in a detached mount) lack is done by
// mounting on a thread that has a mount namespace of its own. What is mounted there is cloned, which gives a detached
// mount, and vanishes with the thread.

// TestVariable is the environment variable by which tests have kiln do without what it otherwise uses; "old" is for what
// kernels before 6.8 lack.
const TestVariable = "KILN_TEST_MOUNT"

var forced = os.Getenv(TestVariable) == "old"

// AppendsLayers reports whether overlays get their layers one by one; else their directories are one string, which has the same effect.
func AppendsLayers() bool { return appends() }

// appends reports whether overlay knows the option lowerdir+. Before Linux 6.5 any option is taken at first, and refused together
// with all others when the mount is made.
var appends = sync.OnceValue(func() bool {
	c, err := open("overlay")
	if err != nil {
		return true // and so the mount will say what is wrong
	}
	defer c.close()
	return errors.Is(c.set("lowerdir+", "/proc/self/fd/no such directory"), unix.ENOENT) && !forced
})

// alone calls f on a thread with a mount namespace and a working directory of its own, at first copies of the process's. What is
// mounted goes with the thread.
func alone(f func() error) (err error) {
	thread.Do(func() {
		err = os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNS))
		if err == nil {
			err = os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		}
		if err == nil {
			err = f()
		}
	})
	return err
}

// maxOptions is how long the options of mount(2) can be: it takes a page, which ends in a zero byte, and cuts off what is longer.
const maxOptions = 4096 - 1

// mountString mounts the overlay by mount(2), for which all directories are one string. The directories are named by their
// descriptors, so that the string is short and nothing in it has a meaning of its own.
func (o Overlay) mountString() (*os.File, error) {
	fail := func(call string, err error) error {
		return &Error{FS: "overlay", Call: call, Err: err}
	}
	var f *os.File
	err := alone(func() error {
		// They are opened here: the kernel overlays no directory of another mount namespace.
		var fds []int
		here, err := unix.Open(".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fail("open .", err)
		}
		defer unix.Close(here)
		defer func() {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}()
		var names []string
		for _, dir := range append(o.Lower[:len(o.Lower):len(o.Lower)], o.Upper, o.Work) {
			if dir == "" {
				continue
			}
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fail("open "+dir, err)
			}
			fds = append(fds, fd)
			names = append(names, strconv.Itoa(fd))
		}
		n := len(o.Lower)
		lower := "lowerdir=" + strings.Join(names[:n], ":")
		options, flags := lower+",index=off,metacopy=off,redirect_dir=nofollow", uintptr(unix.MS_RDONLY)
		if o.Upper != "" {
			flags = 0
			options += ",upperdir=" + names[n] + ",workdir=" + names[n+1]
			if o.Volatile {
				options += ",volatile"
			}
		}
		if o.UserXattr {
			options += ",userxattr"
		}
		if len(options) > maxOptions {
			return fail(fmt.Sprintf("mount of %d layers before Linux 6.8", n), unix.E2BIG)
		}
		if err := unix.Chdir("/proc/thread-self/fd"); err != nil {
			return fail("chdir /proc/thread-self/fd", err)
		}
		if err := unix.Mount("overlay", names[0], "overlay", flags, options); err != nil {
			return fail("mount with the options "+options, err)
		}
		mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
		if err != nil {
			return fail("see what is mounted", err)
		}
		if text := string(mounts) + "\n"; !strings.Contains(text, lower+",") && !strings.Contains(text, lower+"\n") {
			return fail(fmt.Sprintf("mount of %d layers: the kernel has not taken all of them", n), unix.EINVAL)
		}
		// Its name leads to what is mounted on it, and the descriptor to what is below.
		if err := unix.Fchdir(here); err != nil {
			return fail("chdir", err)
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, o.Lower[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fail("open_tree", err)
		}
		f = os.NewFile(uintptr(fd), "overlay")
		return nil
	})
	return f, err
}

// Below returns a detached bind mount of the directory or file that f is open on, with all mounts below it if recursive. f may
// be in the detached mount that root is the root of; root is then used up: it can be read through its descriptor, and not
// be attached any more.
func Below(root, f *os.File, recursive bool) (*os.File, error) {
	all, err := AllBelow(root, recursive, f)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// AllBelow is Below for several directories and files of one mount. With root among them a mount like it can still be attached.
func AllBelow(root *os.File, recursive bool, files ...*os.File) ([]*os.File, error) {
	all, err := clones(recursive, files)
	if !errors.Is(err, unix.EINVAL) && !forced {
		return all, err
	}
	at := "/"
	if info, err := root.Stat(); err == nil && !info.IsDir() {
		at = "/proc/version" // a file, which there is wherever kiln runs
	}
	var within []*os.File
	moved := alone(func() error {
		err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
		if err == nil {
			within, err = clones(recursive, files)
		}
		return err
	})
	if moved != nil {
		return all, err // it is no detached mount, and the error has another cause
	}
	closeAll(all)
	return within, nil
}

func clones(recursive bool, files []*os.File) ([]*os.File, error) {
	var all []*os.File
	for _, f := range files {
		m, err := Clone(f, recursive)
		if err != nil {
			closeAll(all)
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
