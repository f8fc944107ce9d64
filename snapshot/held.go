package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/internal/userns"
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
//   - A device is known by its inode: Mount opens the devices of a root, and what is the same file afterwards is the device, wherever it is.
//   - A file or directory that was changed where it was still has its owner. That it is the same is told by the mark that the overlay
//     leaves on what it copies up, which is hidden from the step, or in a copy by the inode. Of a file that had several names the overlay leaves none;
//     it, symbolic links and named pipes keep the owner of what was at their path.
//   - A file with the bytes, mode and attributes of one that is not there any more is that file, moved, if it was copied up or has its time, as
//     what mv(1) copies has.
//   - Everything else was made by the step and belongs to root.
//
// So the worst that a step can do is to have a file keep the owner that it had, with what a root of all ids could have put in it.

// OtherIDsError is a store that is kept in another form than this process's, or whose files have other owners than they would have
// for it.
type OtherIDsError struct{ Root string }

func (e *OtherIDsError) Error() string {
	return fmt.Sprintf("%s was made with other user ids than kiln has now, so the owners of its files would be wrong: remove it, or name another directory with --root", rootdir.Shown(e.Root))
}

// checkIDs compares the ids of the store with those of the process. Those of the first namespace are not written down.
func (s *Store) checkIDs(note string) error {
	was, err := os.ReadFile(note)
	if errors.Is(err, fs.ErrNotExist) {
		_, made := os.Lstat(s.dir)
		if !s.ns.Nested || made == nil {
			was, err = nil, nil
		} else {
			was = []byte(s.ns.String())
			err = s.writeIDs(note, was)
		}
	}
	if err == nil && string(was) != s.ns.String() {
		err = &OtherIDsError{filepath.Dir(note)}
	}
	return err
}

func (s *Store) writeIDs(note string, ids []byte) error {
	f, err := os.CreateTemp(s.tmp, "ids-")
	if err != nil {
		return err
	}
	_, err = f.Write(ids)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), note)
}

// owner returns the owner that e has on disk. An id that nobody can have there is an error.
func owner(ns userns.Namespace, e *layer.Entry) (uid, gid int, err error) {
	if ns.Single() {
		return 0, 0, nil
	}
	if err := ns.Check(e.UID, e.GID); err != nil {
		return 0, 0, fmt.Errorf("/%s: %w", e.Path, err)
	}
	return int(e.UID), int(e.GID), nil
}

// writable reports whether an extended attribute can be on disk, see xattr(7).
func writable(ns userns.Namespace, e *layer.Entry, name string) bool {
	switch {
	case strings.HasPrefix(name, "user."):
		return e.Type == layer.File || e.Type == layer.Dir
	case strings.HasPrefix(name, "trusted."):
		return !ns.Nested
	}
	return true
}

// stored returns an entry as it is on disk.
func (s *Store) stored(e layer.Entry) layer.Entry {
	e.Xattrs = slices.DeleteFunc(slices.Clone(e.Xattrs), func(x layer.Xattr) bool { return !writable(s.ns, &e, x.Name) })
	if s.ns.Single() {
		e.UID, e.GID = 0, 0
	}
	if s.ns.Nested && (e.Type == layer.Char || e.Type == layer.Block) {
		e.Type, e.Major, e.Minor = layer.File, 0, 0
	}
	return e
}

// ownerless reports whether the disk cannot hold the owner of an entry.
func ownerless(ns userns.Namespace, e *layer.Entry) bool { return ns.Single() && e.UID|e.GID != 0 }

// device makes the file that stands for a device.
func device(dir int, e *layer.Entry) error {
	fd, err := unix.Openat(dir, e.Name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// maxDevices is how many devices a root may have in a user namespace, each of which is open while a step runs.
const maxDevices = 1024

// TooManyDevicesError says that a root has more than maxDevices devices.
type TooManyDevicesError struct{}

func (e *TooManyDevicesError) Error() string {
	return fmt.Sprintf("the root file system has more than the %d devices that a RUN of an ordinary user can have: build it as root", maxDevices)
}

// heldDevice is a device of a root, with the file that stands for it.
type heldDevice struct {
	file  *os.File
	entry layer.Entry
}

// fileID is what a file is known by while it is open.
type fileID struct{ dev, ino uint64 }

// holdDevices opens what stands for the devices of the root, which is made of the layers of tree.
func (r *Root) holdDevices(tree *Tree) error {
	for e := range tree.visible(func(m *layer.Manifest) bool { return m.Devices }) {
		if e.Type != layer.Char && e.Type != layer.Block {
			continue
		}
		if len(r.devices) == maxDevices {
			return &TooManyDevicesError{}
		}
		f, err := rootfs.At(r.File).OpenNoSymlinks(e.Path, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			return fmt.Errorf("open what stands for the device /%s: %w", e.Path, err)
		}
		r.devices = append(r.devices, heldDevice{f, e})
	}
	return nil
}

// forgetRemoved closes the devices that the step has removed: the file system cannot be sealed as long as they are open. One that was given
// another name by link(2) and removed under its own is no device any more.
func (r *Root) forgetRemoved() {
	r.devices = slices.DeleteFunc(r.devices, func(d heldDevice) bool {
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", d.file.Fd()))
		removed := err != nil || strings.HasSuffix(name, " (deleted)") // proc_pid_fd(5)
		if removed {
			d.file.Close()
		}
		return removed
	})
}

// device returns the device that stands at a path of the root, after the step.
func (r *Root) device(path string) (layer.Entry, bool, error) {
	if len(r.devices) == 0 {
		return layer.Entry{}, false, nil
	}
	if r.byID == nil {
		r.byID = map[fileID]layer.Entry{}
		for _, d := range r.devices {
			id, err := idOf(int(d.file.Fd()), "")
			if err != nil {
				return layer.Entry{}, false, err
			}
			r.byID[id] = d.entry
		}
	}
	id, err := idOf(int(r.File.Fd()), path)
	e, ok := r.byID[id]
	return e, ok && err == nil, err
}

func idOf(dir int, path string) (fileID, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, path, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
	return fileID{st.Dev, st.Ino}, err
}

// restore gives an entry what the disk cannot hold, and reports whether the file is that which was at its path before. own says that it was
// copied up, to this path or another.
func (r *upperReader) restore(e *layer.Entry, size int64, own bool) (inPlace bool, err error) {
	if e.Type == layer.File && size == 0 {
		device, ok, err := r.root.device(e.Path)
		if err != nil {
			return false, err
		}
		if ok {
			e.Type, e.Major, e.Minor = device.Type, device.Major, device.Minor
			if r.store.ns.Single() {
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
		if !own && ownerless(r.store.ns, &was) {
			if own, err = r.below.severalNames(&was); err != nil {
				return false, err
			}
		}
	}
	if !own {
		return false, nil
	}
	if r.store.ns.Single() {
		e.UID, e.GID = was.UID, was.GID
	}
	if e.Type == layer.Dir {
		for _, x := range was.Xattrs {
			if !writable(r.store.ns, &was, x.Name) {
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
		if c.Digest != e.Digest || !copiedUp && !copiedTime(e.ModTime, c.ModTime) || !slices.Equal(r.store.stored(*c).Xattrs, e.Xattrs) {
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
	for e := range r.below.visible(func(m *layer.Manifest) bool { return m.Owned }) {
		if e.Type != layer.File || !ownerless(r.store.ns, &e) {
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

// visible yields the entries of layers whose manifests with holds for, as Lookup has them, but for those that layers above hide.
func (t *Tree) visible(with func(*layer.Manifest) bool) iter.Seq[layer.Entry] {
	return func(yield func(layer.Entry) bool) {
		for i, l := range t.layers {
			if !with(l.manifest) {
				continue
			}
			for e := range l.manifest.All() {
				if found, at, ok := t.find(e.Path); ok && at == i && !yield(found) {
					return
				}
			}
		}
	}
}

// severalNames reports whether a file of the tree has more names than one on disk.
func (t *Tree) severalNames(e *layer.Entry) (bool, error) {
	_, i, ok := t.find(e.Path)
	if !ok || i < 0 {
		return false, nil
	}
	files, err := t.filesOf(i)
	if err != nil {
		return false, err
	}
	f, err := files.at(e.Path).root.OpenNoSymlinks(e.Path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	return st.Nlink > 1, err
}
