package cdi

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootfs"
)

// Open returns a detached mount of a device node of its own: a step that changes mode or owner of it does not change the host's. Where kiln
// may make none it is the host's after all.
func (n *Node) Open() (*os.File, error) {
	if !path.IsAbs(n.Path) {
		return nil, errors.New("not an absolute path")
	}
	from := n.HostPath
	if from == "" {
		from = n.Path
	}
	fd, err := unix.Open(from, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the host's %s: %w", from, err)
	}
	host := os.NewFile(uintptr(fd), from)
	defer host.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFCHR && kind != unix.S_IFBLK {
		return nil, fmt.Errorf("the host's %s is not a device", from)
	}
	if n.Type != "" && ((n.Type == "b") != (kind == unix.S_IFBLK) || uint64(st.Rdev) != unix.Mkdev(uint32(n.Major), uint32(n.Minor))) {
		return nil, fmt.Errorf("the host's %s is another device than %s %d:%d", from, n.Type, n.Major, n.Minor)
	}
	mode, uid, gid := st.Mode&0o777, st.Uid, st.Gid
	if n.FileMode != nil {
		mode = *n.FileMode & 0o777
	}
	if n.UID != nil {
		uid = *n.UID
	}
	if n.GID != nil {
		gid = *n.GID
	}
	fs, err := mount.New("tmpfs", mount.NoSuid|mount.NoExec, mount.Option{Name: "size", Value: "64k"})
	if err != nil {
		return nil, err
	}
	defer fs.Close()
	err = unix.Mknodat(int(fs.Fd()), "node", kind|mode, int(st.Rdev))
	if err == nil {
		err = errors.Join(
			unix.Fchownat(int(fs.Fd()), "node", int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW),
			unix.Fchmodat(int(fs.Fd()), "node", mode, 0))
		if err == nil {
			host.Close()
			host, err = rootfs.At(fs).OpenFile("node", unix.O_PATH, 0)
		}
	}
	if err != nil && !errors.Is(err, unix.EPERM) {
		return nil, err
	}
	own := err == nil
	clone, err := mount.Below(fs, host, false)
	if err != nil {
		return nil, err
	}
	if !own { // the step may use the host's node, and not change it
		if err := mount.SetAttr(clone, mount.ReadOnly, false); err != nil {
			clone.Close()
			return nil, err
		}
	}
	return clone, nil
}

// Open returns a detached mount of a file or directory of the host.
func (b *Mount) Open() (*os.File, error) {
	if !path.IsAbs(b.ContainerPath) {
		return nil, errors.New("not an absolute path")
	}
	if b.Type != "" && b.Type != "bind" {
		return nil, fmt.Errorf("the type %q is not supported", b.Type)
	}
	var attr mount.Attr
	recursive := false
	for _, o := range b.Options {
		switch o {
		case "ro":
			attr |= mount.ReadOnly
		case "nosuid":
			attr |= mount.NoSuid
		case "noexec":
			attr |= mount.NoExec
		case "rbind":
			recursive = true
		case "bind", "rw", "nodev", "private", "rprivate", "slave", "rslave":
			// A step's mounts are private, and without devices.
		default:
			return nil, fmt.Errorf("the option %q is not supported", o)
		}
	}
	f, err := os.OpenFile(b.HostPath, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	clone, err := mount.Clone(f, recursive)
	if err != nil {
		return nil, err
	}
	if attr != 0 {
		if err := mount.SetAttr(clone, attr, recursive); err != nil {
			clone.Close()
			return nil, err
		}
	}
	return clone, nil
}
