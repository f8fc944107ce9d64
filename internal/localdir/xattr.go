package localdir

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// xattrs returns the extended attributes of what is called name in the directory dir, or with "" of dir itself: those of users, which alone
// docker build takes, but for the overlay file system's. It follows no link. There are none where the file is gone, cannot be read,
// or is on a file system that has no attributes.
func (d *Dir) xattrs(dir int, name, path string) ([]layer.Xattr, error) {
	file := "/proc/self/fd/" + strconv.Itoa(dir)
	list, get := unix.Listxattr, unix.Getxattr // dir is what the link in /proc leads to
	if name != "" {
		file += "/" + name
		list, get = unix.Llistxattr, unix.Lgetxattr
	}
	names, err := grow(func(b []byte) (int, error) { return list(file, b) })
	if err != nil || names == "" {
		return nil, d.xattrError("listxattr", path, err)
	}
	var all []layer.Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(names, "\x00"), "\x00") {
		if !strings.HasPrefix(name, "user.") || !layer.KeepXattr(name) {
			continue
		}
		value, err := grow(func(b []byte) (int, error) { return get(file, name, b) })
		if errors.Is(err, unix.ENODATA) {
			continue // it was removed meanwhile
		}
		if err != nil {
			return nil, d.xattrError("getxattr "+name, path, err)
		}
		all = append(all, layer.Xattr{Name: name, Value: value})
	}
	slices.SortFunc(all, func(a, b layer.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// xattrError returns the error of a look at attributes, nil where that there are none is the answer.
func (d *Dir) xattrError(op, path string, err error) error {
	if err == nil || slices.Contains([]error{unix.ENOTSUP, unix.EACCES, unix.EPERM, unix.ENOENT, unix.ENOTDIR, unix.ENODATA}, err) {
		return nil
	}
	return &os.PathError{Op: op, Path: d.shown(path), Err: err}
}

// grow calls a function that fills a buffer, with one that is large enough: XATTR_LIST_MAX and XATTR_SIZE_MAX are 64 KiB.
func grow(fill func(b []byte) (int, error)) (string, error) {
	var room [1024]byte
	b := room[:]
	n, err := fill(b)
	if errors.Is(err, unix.ERANGE) {
		b = make([]byte, 64<<10)
		n, err = fill(b)
	}
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}
