package dir

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// Target is a file on disk whose attributes are read or changed: an open file or directory, or, for what is not opened since that may have
// effects, as for a device, a path whose last component is not followed.
type Target struct {
	Fd   int
	path string // "": Fd
}

// Within returns the place of a name in an open directory.
func Within(dir int, name string) Target {
	return Target{Fd: -1, path: "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name}
}

func (t Target) list(b []byte) (int, error) {
	if t.path != "" {
		return unix.Llistxattr(t.path, b)
	}
	return unix.Flistxattr(t.Fd, b)
}

func (t Target) get(name string, b []byte) (int, error) {
	if t.path != "" {
		return unix.Lgetxattr(t.path, name, b)
	}
	return unix.Fgetxattr(t.Fd, name, b)
}

func (t Target) set(name, value string) error {
	if t.path != "" {
		return unix.Lsetxattr(t.path, name, []byte(value), 0)
	}
	return unix.Fsetxattr(t.Fd, name, []byte(value), 0)
}

func (t Target) remove(name string) error {
	if t.path != "" {
		return unix.Lremovexattr(t.path, name)
	}
	return unix.Fremovexattr(t.Fd, name)
}

// xattrs returns the names of the extended attributes, sorted; none where the file system has no such thing.
func (t Target) xattrs() ([]string, error) {
	var room [1024]byte
	b := room[:]
	n, err := t.list(b)
	if errors.Is(err, unix.ERANGE) {
		b = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = t.list(b)
	}
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	slices.Sort(names)
	return names, nil
}

func (t Target) xattr(name string) (string, error) {
	b := make([]byte, 256)
	n, err := t.get(name, b)
	if errors.Is(err, unix.ERANGE) {
		b = make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err = t.get(name, b)
	}
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// Attributes are the extended attributes of a file.
type Attributes struct {
	// Content is what layers record.
	Content []layer.Xattr
	// Opaque and CopiedUp are marks of an overlay: on a directory that hides lower ones, and on a file that was copied up and had one name.
	Opaque, CopiedUp bool
	// Foreign are names that are neither content nor set by the host: access control lists, other marks of overlays, and whatever else a
	// step has set.
	Foreign []string
}

// The marks of an overlay, by what comes after the prefix of their names: kernel, Documentation/filesystems/overlayfs.rst and
// fs/overlayfs/overlayfs.h. The overlay hides its marks from those who use it, and takes no account of origin and impure in a lower
// directory; it writes them again whenever somebody looks at a directory that lacks them. So they are left alone. In a user namespace the
// value of origin is empty.
const (
	opaqueMark  = "opaque"
	opaqueValue = "y"
	originMark  = "origin"
	impureMark  = "impure"
)

// Attributes reads the extended attributes of a file.
func (f *FS) Attributes(t Target) (a Attributes, err error) {
	names, err := t.xattrs()
	if err != nil {
		return a, err
	}
	for _, name := range names {
		mark, marked := strings.CutPrefix(name, f.prefix)
		switch {
		case layer.KeepXattr(name):
			value, err := t.xattr(name)
			if err != nil {
				return a, err
			}
			a.Content = append(a.Content, layer.Xattr{Name: name, Value: value})
		case marked && mark == originMark:
			a.CopiedUp = true
		case marked && mark == opaqueMark:
			value, err := t.xattr(name)
			if err != nil {
				return a, err
			}
			if a.Opaque = value == opaqueValue; !a.Opaque {
				a.Foreign = append(a.Foreign, name)
			}
		case marked && mark == impureMark, machineXattr(name), f.given(name):
		default:
			a.Foreign = append(a.Foreign, name)
		}
	}
	return a, nil
}

// machineXattr reports whether an extended attribute is the machine's: a label by which a security module knows the file, or how btrfs(5)
// keeps it. The kernel gives such to new files by itself and may not let them be removed; in a user namespace nobody can set a label.
func machineXattr(name string) bool {
	switch name {
	case "security.selinux", "security.apparmor", "security.ima", "security.evm":
		return true
	}
	return strings.HasPrefix(name, "security.SMACK64") || strings.HasPrefix(name, "btrfs.")
}

// given reports whether the file system gives every new file an extended attribute of this name, as NFS does with its access control list.
func (f *FS) given(name string) bool {
	f.givenOnce.Do(func() { f.givenNames = slices.Concat(newXattrs(f.Tmp, false), newXattrs(f.Tmp, true)) })
	return slices.Contains(f.givenNames, name)
}

// newXattrs returns the names of the extended attributes that a new file or directory in dir has; none where that cannot be found out.
func newXattrs(dir string, isDir bool) []string {
	name, err := os.MkdirTemp(dir, "attributes-")
	if err != nil {
		return nil
	}
	defer dirtree.Remove(name)
	if !isDir {
		name += "/file"
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return nil
		}
	}
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := Target{Fd: int(f.Fd())}.xattrs()
	return names
}

// Clean removes from a file what a layer does not record: the foreign attributes and, of an open file or directory, what chattr(1) sets.
// base has the flags of the directory that layers are kept in, which files inherit.
func (f *FS) Clean(t Target, foreign []string, base Flags) error {
	if t.path == "" {
		have, err := f.flagsOf(t.Fd)
		if err == nil {
			err = have.beyond(base).clear(t.Fd, base)
		}
		if err != nil {
			return err
		}
	}
	return t.Remove(foreign)
}

// Remove removes extended attributes; one that does not exist is no error.
func (t Target) Remove(names []string) error {
	for _, name := range names {
		if err := t.remove(name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove the attribute %s: %w", name, err)
		}
	}
	return nil
}
