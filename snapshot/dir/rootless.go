package dir

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// In a user namespace the file system cannot represent everything in a layer. The following is in the manifest only:
//
//   - a device is an empty file on disk;
//   - if only one ID is mapped, every file belongs to root;
//   - attributes that only root in the initial namespace can set are missing.
//
// Package diff restores this information when a step has changed such files.

// owner returns the owner that e has on disk. It is an error if the ID is not mapped.
func (f *FS) owner(e *layer.Entry) (uid, gid int, err error) {
	if f.NS.Single() {
		return 0, 0, nil
	}
	if err := f.NS.Check(e.UID, e.GID); err != nil {
		return 0, 0, fmt.Errorf("/%s: %w", e.Path, err)
	}
	return int(e.UID), int(e.GID), nil
}

// Writable reports whether an extended attribute can be set on disk, see xattr(7).
func (f *FS) Writable(e *layer.Entry, name string) bool {
	switch {
	case strings.HasPrefix(name, "user."):
		return e.Type == layer.File || e.Type == layer.Dir
	case strings.HasPrefix(name, "trusted."):
		return !f.NS.Nested
	}
	return true
}

// Stored returns an entry as it is represented on disk.
func (f *FS) Stored(e layer.Entry) layer.Entry {
	e.Xattrs = slices.DeleteFunc(slices.Clone(e.Xattrs), func(x layer.Xattr) bool { return !f.Writable(&e, x.Name) })
	if f.NS.Single() {
		e.UID, e.GID = 0, 0
	}
	if f.NS.Nested && (e.Type == layer.Char || e.Type == layer.Block) {
		e.Type, e.Major, e.Minor = layer.File, 0, 0
	}
	return e
}

// Ownerless reports whether the owner of an entry cannot be represented on disk.
func (f *FS) Ownerless(e *layer.Entry) bool { return f.NS.Single() && e.UID|e.GID != 0 }

// device creates the file that represents a device.
func device(dir int, e *layer.Entry) error {
	fd, err := unix.Openat(dir, e.Name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
