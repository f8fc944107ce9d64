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

// Target is a file on disk whose attributes are read or changed. It is an open file or directory or, for a file that is not
// opened because opening it may have side effects, such as a device, a path whose last component is not followed.
type Target struct {
	Fd   int
	path string // "" if Fd is used
}

// Within returns the Target for a name in an open directory.
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

// xattrs returns the sorted names of the extended attributes. It returns none if the file system does not support them.
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
	// Content are the attributes that layers record.
	Content []layer.Xattr
	// Opaque and CopiedUp report marks of an overlay: on a directory that hides lower ones, and on a file that was copied up and had
	// one name.
	Opaque, CopiedUp bool
	// Foreign are the names of attributes that are neither content nor set by the host: access control lists, other marks of
	// overlays, and anything else that a step has set.
	Foreign []string
}

// The marks of an overlay, without the prefix of their names: kernel, Documentation/filesystems/overlayfs.rst and
// fs/overlayfs/overlayfs.h. The overlay hides its marks from its users, and ignores origin and impure in a lower directory; it
// sets them again whenever a directory that lacks them is read, so kiln leaves them alone. In a user namespace the value of
// origin is empty.
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
		case marked && mark == impureMark, hostXattr(name), f.given(name):
		default:
			a.Foreign = append(a.Foreign, name)
		}
	}
	return a, nil
}

// hostXattr reports whether an extended attribute belongs to the host: a label of a security module, or a property of btrfs(5).
// The kernel sets these on new files by itself and may not allow their removal; in a user namespace, labels cannot be set at all.
func hostXattr(name string) bool {
	switch name {
	case "security.selinux", "security.apparmor", "security.ima", "security.evm":
		return true
	}
	return strings.HasPrefix(name, "security.SMACK64") || strings.HasPrefix(name, "btrfs.")
}

// given reports whether the file system gives an extended attribute of this name to every new file, as NFS does with its access
// control list.
func (f *FS) given(name string) bool {
	f.givenOnce.Do(func() { f.givenNames = slices.Concat(newXattrs(f.Tmp, false), newXattrs(f.Tmp, true)) })
	return slices.Contains(f.givenNames, name)
}

// newXattrs returns the names of the extended attributes of a new file or directory in dir, or none on failure.
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

// Clean removes the attributes that a layer does not record: the foreign attributes and, for an open file or directory, the flags
// set by chattr(1). base are the flags of the directory that contains the layers, which files inherit.
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

// Remove removes extended attributes. It is not an error if one does not exist.
func (t Target) Remove(names []string) error {
	for _, name := range names {
		if err := t.remove(name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove the attribute %s: %w", name, err)
		}
	}
	return nil
}
