package diff

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// In a user namespace the file system cannot represent everything in a layer. The following is in the manifest only:
//
//   - a device is an empty file on disk;
//   - if only one ID is mapped, every file belongs to root;
//   - attributes that only root in the initial namespace can set are missing.
//
// This information is not recorded on disk, since a step can write anything that is carried along when it changes a file. When a
// layer is committed, it is restored from what a step cannot influence:
//
//   - A device is identified by its inode: Mount opens the devices of a root, and the same file is still the device afterwards,
//     at any path.
//   - A file or directory that was changed in place keeps its owner. It is recognized by the mark that the overlay sets when it
//     copies a file up, which is hidden from the step, or in a copy by its inode. The overlay sets no mark on a file with
//     several names; such files, symbolic links and named pipes keep the owner of the file that was at their path.
//   - A file with the bytes, mode and attributes of one that no longer exists is taken to be that file, moved, if it was copied
//     up or has its time, as the copies made by mv(1) have.
//   - Everything else was made by the step and belongs to root.
//
// The worst that a step can do is to let a file keep its former owner, with contents that root with all IDs mapped could have
// written.

// restore adds to an entry what cannot be represented on disk, and reports whether the file is the one that was at its path
// before. own reports that it was copied up, to this path or another.
func (r *upperReader) restore(e *layer.Entry, size int64, own bool) (inPlace bool, err error) {
	if e.Type == layer.File && size == 0 {
		device, ok, err := r.root.Device(e.Path)
		if err != nil {
			return false, err
		}
		if ok {
			e.Type, e.Major, e.Minor = device.Type, device.Major, device.Minor
			if r.fs.NS.Single() {
				e.UID, e.GID = device.UID, device.GID
			}
			return true, nil
		}
	}
	if r.hidden {
		return false, nil
	}
	was, ok, err := r.below.Lookup(e.Path)
	if err != nil || !ok || was.Type != e.Type {
		return false, err
	}
	switch e.Type {
	case layer.Symlink, layer.Fifo:
		own = was.Link == e.Link
	case layer.File:
		if !own && r.fs.Ownerless(&was) {
			names, err := r.below.Names(was.Path)
			if err != nil {
				return false, err
			}
			own = names > 1
		}
	}
	if !own {
		return false, nil
	}
	if r.fs.NS.Single() {
		e.UID, e.GID = was.UID, was.GID
	}
	if e.Type == layer.Dir {
		for _, x := range was.Xattrs {
			if !r.fs.Writable(&was, x.Name) {
				e.Xattrs = append(e.Xattrs, x)
			}
		}
		slices.SortFunc(e.Xattrs, func(a, b layer.Xattr) int { return strings.Compare(a.Name, b.Name) })
	}
	return true, nil
}

// lostKey is the part of a file's description that is known before the file is read.
type lostKey struct {
	size int64
	mode uint32
}

// moved gives a file that the step created or moved the owner of an identical file that no longer exists. copiedUp reports that
// it is a file of below. If identical files had different owners, none of them is used.
func (r *upperReader) moved(e *layer.Entry, size int64, copiedUp bool) error {
	if r.lost == nil {
		if err := r.findLost(); err != nil {
			return err
		}
	}
	candidates := r.lost[lostKey{size, e.Mode}]
	if len(candidates) == 0 {
		return nil
	}
	if err := r.digesting.wait(e); err != nil {
		return err
	}
	var found *layer.Entry
	for i := range candidates {
		c := &candidates[i]
		if c.Digest != e.Digest || !copiedUp && !copiedTime(e.ModTime, c.ModTime) || !slices.Equal(r.fs.Stored(*c).Xattrs, e.Xattrs) {
			continue
		}
		if found != nil && (found.UID != c.UID || found.GID != c.GID) {
			return nil
		}
		found = c
	}
	if found != nil {
		e.UID, e.GID = found.UID, found.GID
	}
	return nil
}

// copiedTime reports whether t is the time from as programs copy it: some only preserve whole microseconds or seconds.
func copiedTime(t, from time.Time) bool {
	for _, unit := range []time.Duration{time.Nanosecond, time.Microsecond, time.Second} {
		if t.Equal(from.Truncate(unit)) {
			return true
		}
	}
	return false
}

// findLost finds the files of below whose owner is not on disk and that no longer exist unchanged in the root.
func (r *upperReader) findLost() error {
	r.lost = map[lostKey][]layer.Entry{}
	for e := range r.below.Visible(func(m *layer.Manifest) bool { return m.Owned }) {
		if e.Type != layer.File || !r.fs.Ownerless(&e) {
			continue
		}
		exists, err := r.exists(&e)
		if err != nil {
			return err
		}
		if !exists {
			key := lostKey{e.Size, e.Mode}
			r.lost[key] = append(r.lost[key], e)
		}
		if err := ctxio.Ended(r.ctx); err != nil {
			return err
		}
	}
	return nil
}

// exists reports whether a file of below exists unchanged in the root.
func (r *upperReader) exists(e *layer.Entry) (bool, error) {
	f, err := rootfs.At(r.root.File).OpenNoSymlinks(e.Path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, err
	}
	return st.Mode == unix.S_IFREG|e.Mode && st.Size == e.Size && e.ModTime.Equal(time.Unix(st.Mtim.Unix())), nil
}
