package execute

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/cdi"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
)

// Devices implements plan.Sources.
func (x *Job) Devices(op llb.Exec) error {
	_, err := x.devices(op)
	return err
}

// devices returns the devices of a RUN, each once. Those that do not exist are left out if they are allowed and not required: a build that
// allows no devices may have been meant to have them, unless Options.NoDevices says otherwise.
func (x *Job) devices(op llb.Exec) ([]*cdi.Device, error) {
	if len(op.Devices) == 0 {
		return nil, nil
	}
	registry := x.cdi()
	var devices []*cdi.Device
	for _, asked := range op.Devices {
		found, err := registry.Find(asked.Name)
		if err != nil {
			return nil, err
		}
		allowed := cdi.NameAllowed(asked.Name, x.Allow)
		if len(found) == 0 && (asked.Required || !allowed && !x.NoDevices) {
			err := fmt.Errorf("no specification in %s has the device %q, which is required", strings.Join(x.CDIDirs, ", "), asked.Name)
			if !asked.Required {
				err = fmt.Errorf("no specification in %s has the device %q (--allow device=%s runs the step without it)",
					strings.Join(x.CDIDirs, ", "), asked.Name, asked.Name)
			}
			if p := registry.Problems(); p != "" {
				err = fmt.Errorf("%w (%s)", err, p)
			}
			return nil, err
		}
		for _, d := range found {
			if !d.Allowed(asked.Name, x.Allow) {
				return nil, &DeviceError{d.Name}
			}
			if what := d.Unsupported(); what != "" {
				return nil, fmt.Errorf("the device %s has %s in its specification, which are not supported", d.Name, what)
			}
			if !slices.Contains(devices, d) {
				devices = append(devices, d)
			}
		}
	}
	return devices, nil
}

// DeviceError is a device that a step asks for, and that the build is not allowed to use.
type DeviceError struct{ Name string }

func (e *DeviceError) Error() string {
	return fmt.Sprintf("the device %s is not allowed (--allow device=%s allows it)", e.Name, e.Name)
}

// addDevices adds what the devices of the step need.
func (m *mounting) addDevices() error {
	devices, err := m.x.devices(m.op)
	if err != nil {
		return err
	}
	for _, d := range devices {
		for _, e := range d.Edits {
			m.deviceEnv = append(m.deviceEnv, e.Env...)
			m.groups = append(m.groups, e.Groups...)
			for _, n := range e.DeviceNodes {
				if err := m.node(n); err != nil {
					return fmt.Errorf("device %s: node %s: %w", d.Name, n.Path, err)
				}
			}
			for _, b := range e.Mounts {
				if err := m.hostMount(b); err != nil {
					return fmt.Errorf("device %s: mount at %s: %w", d.Name, b.ContainerPath, err)
				}
			}
		}
	}
	return nil
}

// node makes a device node of its own: a step that changes mode or owner of it does not change the host's. Where kiln may
// make none it is the host's after all.
func (m *mounting) node(n cdi.Node) error {
	if !path.IsAbs(n.Path) {
		return errors.New("not an absolute path")
	}
	from := n.HostPath
	if from == "" {
		from = n.Path
	}
	fd, err := unix.Open(from, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the host's %s: %w", from, err)
	}
	host := os.NewFile(uintptr(fd), from)
	defer host.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFCHR && kind != unix.S_IFBLK {
		return fmt.Errorf("the host's %s is not a device", from)
	}
	if n.Type != "" && ((n.Type == "b") != (kind == unix.S_IFBLK) || uint64(st.Rdev) != unix.Mkdev(uint32(n.Major), uint32(n.Minor))) {
		return fmt.Errorf("the host's %s is another device than %s %d:%d", from, n.Type, n.Major, n.Minor)
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
		return err
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
		return err
	}
	own := err == nil
	clone, err := mount.Below(fs, host, false)
	if err != nil {
		return err
	}
	m.closers = append(m.closers, func() { clone.Close() })
	if !own { // the step may use the host's node, and not change it
		if err := mount.SetAttr(clone, mount.ReadOnly, false); err != nil {
			return err
		}
	}
	m.nodes = append(m.nodes, sandbox.Mount{Source: clone, Target: path.Clean(n.Path)})
	return nil
}

// hostMount mounts a file or directory of the host.
func (m *mounting) hostMount(b cdi.Mount) error {
	if !path.IsAbs(b.ContainerPath) {
		return errors.New("not an absolute path")
	}
	if b.Type != "" && b.Type != "bind" {
		return fmt.Errorf("the type %q is not supported", b.Type)
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
			return fmt.Errorf("the option %q is not supported", o)
		}
	}
	f, err := os.OpenFile(b.HostPath, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	clone, err := mount.Clone(f, recursive)
	if err != nil {
		return err
	}
	m.add(clone, path.Clean(b.ContainerPath))
	m.mounts[len(m.mounts)-1].Shared = true
	if attr == 0 {
		return nil
	}
	return mount.SetAttr(clone, attr, recursive)
}

// override returns env with variables, of which those of the same name take the place of others.
func override(env, with []string) []string {
	for _, v := range with {
		name, _, _ := strings.Cut(v, "=")
		env = append(slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, name+"=") }), v)
	}
	return env
}
