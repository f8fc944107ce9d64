package snapshot

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

// target is a file on disk whose attributes are read or changed: an open file or directory, or, for what is not opened since that may have
// effects, as for a device, a path whose last component is not followed.
type target struct {
	fd   int
	path string // "": fd
}

// within returns the place of a name in an open directory.
func within(dir int, name string) target {
	return target{fd: -1, path: "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name}
}

func (t target) list(b []byte) (int, error) {
	if t.path != "" {
		return unix.Llistxattr(t.path, b)
	}
	return unix.Flistxattr(t.fd, b)
}

func (t target) get(name string, b []byte) (int, error) {
	if t.path != "" {
		return unix.Lgetxattr(t.path, name, b)
	}
	return unix.Fgetxattr(t.fd, name, b)
}

func (t target) set(name, value string) error {
	if t.path != "" {
		return unix.Lsetxattr(t.path, name, []byte(value), 0)
	}
	return unix.Fsetxattr(t.fd, name, []byte(value), 0)
}

func (t target) remove(name string) error {
	if t.path != "" {
		return unix.Lremovexattr(t.path, name)
	}
	return unix.Fremovexattr(t.fd, name)
}

// xattrs returns the names of the extended attributes, sorted; none where the file system has no such thing.
func (t target) xattrs() ([]string, error) {
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

func (t target) xattr(name string) (string, error) {
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

// attributes are the extended attributes of a file.
type attributes struct {
	content []layer.Xattr // what layers record
	// opaque and copiedUp are marks of an overlay: of a directory that hides lower ones, and of what was copied up and had one name.
	opaque, copiedUp bool
	// foreign are names that are neither content nor the machine's: access control lists, other marks of overlays, and whatever
	// else a step has set.
	foreign []string
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

// attributesOf reads the extended attributes of a file.
func (s *Store) attributesOf(t target) (a attributes, err error) {
	names, err := t.xattrs()
	if err != nil {
		return a, err
	}
	for _, name := range names {
		mark, marked := strings.CutPrefix(name, s.mark)
		switch {
		case layer.KeepXattr(name):
			value, err := t.xattr(name)
			if err != nil {
				return a, err
			}
			a.content = append(a.content, layer.Xattr{Name: name, Value: value})
		case marked && mark == originMark:
			a.copiedUp = true
		case marked && mark == opaqueMark:
			value, err := t.xattr(name)
			if err != nil {
				return a, err
			}
			if a.opaque = value == opaqueValue; !a.opaque {
				a.foreign = append(a.foreign, name)
			}
		case marked && mark == impureMark, machineXattr(name), s.given(name):
		default:
			a.foreign = append(a.foreign, name)
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
func (s *Store) given(name string) bool {
	s.givenOnce.Do(func() { s.givenNames = slices.Concat(newXattrs(s.tmp, false), newXattrs(s.tmp, true)) })
	return slices.Contains(s.givenNames, name)
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
	names, _ := target{fd: int(f.Fd())}.xattrs()
	return names
}

// clean takes from an open file or directory, or from another file, what a layer does not record: the foreign attributes, and for what is
// open all that chattr(1) sets.
func (s *Store) clean(t target, foreign []string, base inode) error {
	if t.path == "" {
		i, err := s.inodeOf(t.fd)
		if err == nil {
			err = i.beyond(base).take(t.fd, base)
		}
		if err != nil {
			return err
		}
	}
	for _, name := range foreign {
		if err := t.remove(name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove the attribute %s: %w", name, err)
		}
	}
	return nil
}
