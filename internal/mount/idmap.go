package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// IDMap says that files on a mount belong to other users and groups than on their file system: to First and so on where there
// they belong to 0 and so on. See mount_setattr(2), "ID-mapped mounts".
type IDMap struct {
	// Namespace is a user namespace with the same map.
	Namespace *os.File
	// FirstUser and FirstGroup are what becomes of 0, and Count is how many ids there are.
	FirstUser, FirstGroup, Count uint32
}

// ErrNoIDMap says that the kernel cannot map the ids of an overlay's layers.
var ErrNoIDMap = errors.New("the kernel cannot map the ids of the files of layers: " +
	"Linux 6.15 or later is needed, and a file system that allows it")

// MapIDs maps the ids of a detached mount, which must not be in use yet.
func MapIDs(f *os.File, m *IDMap) error {
	err := whileBusy(func() error {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(m.Namespace.Fd())}
		return unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, attr)
	})
	if err != nil {
		return fmt.Errorf("map the ids of mount %s: %w", f.Name(), os.NewSyscallError("mount_setattr", err))
	}
	return nil
}

// setMapped sets the options that are directories to those directories with their ids mapped. What it returns is to be closed
// when the overlay is there.
func (o Overlay) setMapped(c *fscontext) (closers []*os.File, err error) {
	set := func(name string, f *os.File) error {
		if err := c.check(unix.FsconfigSetFd(c.fd, name, int(f.Fd())), "fsconfig "+name+"="+f.Name()); err != nil {
			return fmt.Errorf("%w: %w", ErrNoIDMap, err)
		}
		return nil
	}
	for _, dir := range o.Lower {
		f, err := Bind(dir, 0, o.IDMap)
		if err != nil {
			return closers, err
		}
		closers = append(closers, f)
		if err := set("lowerdir+", f); err != nil {
			return closers, err
		}
	}
	if o.Upper == "" {
		return closers, nil
	}
	// Both have to be on the same mount.
	above := filepath.Dir(o.Upper)
	if above != filepath.Dir(o.Work) {
		return closers, &Error{FS: "overlay", Call: "upper and work directory are not side by side", Err: unix.EINVAL}
	}
	m, err := Bind(above, 0, o.IDMap)
	if err != nil {
		return closers, err
	}
	closers = append(closers, m)
	for name, dir := range map[string]string{"upperdir": o.Upper, "workdir": o.Work} {
		fd, err := unix.Openat(int(m.Fd()), filepath.Base(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return closers, &Error{FS: "overlay", Call: "open " + dir, Err: err}
		}
		f := os.NewFile(uintptr(fd), dir)
		closers = append(closers, f)
		if err := set(name, f); err != nil {
			return closers, err
		}
	}
	return closers, nil
}

// AsRoot calls f in a thread that makes files as the root of the map, which the file system takes for those of 0; a nil map is
// for the caller's own user. The privileges stay those of the caller.
func (m *IDMap) AsRoot(f func() error) (err error) {
	if m == nil {
		return f()
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var own [2]unix.CapUserData
	if err := unix.Capget(&hdr, &own[0]); err != nil {
		return fmt.Errorf("get capabilities: %w", err)
	}
	// All of this is of the thread alone. One that cannot be as it was goes with its goroutine.
	runtime.LockOSThread()
	oldUser, _ := unix.SetfsuidRetUid(int(m.FirstUser))
	oldGroup, _ := unix.SetfsgidRetGid(int(m.FirstGroup))
	defer func() {
		_, _ = unix.SetfsuidRetUid(oldUser)
		_, _ = unix.SetfsgidRetGid(oldGroup)
		user, _ := unix.SetfsuidRetUid(-1)
		group, _ := unix.SetfsgidRetGid(-1)
		if capErr := unix.Capset(&hdr, &own[0]); capErr != nil || user != oldUser || group != oldGroup {
			err = errors.Join(err, errors.New("kiln could not become its own user again"))
			return
		}
		runtime.UnlockOSThread()
	}()
	// To be another user for files takes the privileges about files away.
	if err := unix.Capset(&hdr, &own[0]); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	return f()
}
