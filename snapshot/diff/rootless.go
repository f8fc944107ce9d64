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

// In a user namespace a disk cannot hold all that a layer does. What it cannot hold is in the manifest alone:
//
//   - a device is an empty file on disk;
//   - where there is one id, everything belongs to root;
//   - attributes that take the first namespace's root to set are not there.
//
// Nothing on disk says so, since whatever does, and is carried along when a step changes a file, a step can write as well. When a layer is
// committed these things are found out by what a step has no influence on:
//
//   - A device is known by its inode: Mount opens the devices of a root, and what is the same file afterwards is the device, wherever it
//     is.
//   - A file or directory that was changed where it was still has its owner. That it is the same is told by the mark that the overlay
//     leaves on what it copies up, which is hidden from the step, or in a copy by the inode. Of a file that had several names the overlay
//     leaves none; it, symbolic links and named pipes keep the owner of what was at their path.
//   - A file with the bytes, mode and attributes of one that is not there any more is that file, moved, if it was copied up or has its
//     time, as what mv(1) copies has.
//   - Everything else was made by the step and belongs to root.
//
// So the worst that a step can do is to have a file keep the owner that it had, with what a root of all ids could have put in it.

// restore gives an entry what the disk cannot hold, and reports whether the file is that which was at its path before. own says that it was
// copied up, to this path or another.
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

// lostKey is what is known of a file before it is read.
type lostKey struct {
	size int64
	mode uint32
}

// moved gives a file that the step made, or moved, the owner of one that it cannot be told from and that is not there any more. copiedUp
// says that it is a file of below. Files of several owners that are the same are no one's.
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

// copiedTime reports whether a time is that of another file as programs copy it: some know whole microseconds or seconds only.
func copiedTime(t, from time.Time) bool {
	for _, unit := range []time.Duration{time.Nanosecond, time.Microsecond, time.Second} {
		if t.Equal(from.Truncate(unit)) {
			return true
		}
	}
	return false
}

// findLost looks for files of below whose owner is not on disk, and that are not in the root any more as they were.
func (r *upperReader) findLost() error {
	r.lost = map[lostKey][]layer.Entry{}
	for e := range r.below.Visible(func(m *layer.Manifest) bool { return m.Owned }) {
		if e.Type != layer.File || !r.fs.Ownerless(&e) {
			continue
		}
		there, err := r.isThere(&e)
		if err != nil {
			return err
		}
		if !there {
			key := lostKey{e.Size, e.Mode}
			r.lost[key] = append(r.lost[key], e)
		}
		if err := ctxio.Ended(r.ctx); err != nil {
			return err
		}
	}
	return nil
}

// isThere reports whether a file of below is in the root as it was.
func (r *upperReader) isThere(e *layer.Entry) (bool, error) {
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
