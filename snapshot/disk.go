package snapshot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/internal/userns"
	"golang.org/x/sys/unix"
)

// disk writes entries into a directory in the form of an overlay's lower directory: whiteouts are character devices 0:0,
// opaque directories carry an extended attribute. Every path it is given is physical, so that no component may be a
// symbolic link, and every operation is relative to the descriptor of the directory it happens in.
type disk struct {
	root *rootfs.Root
	// dirs are the open directories on the way to the last entry, outermost first: entries mostly come in tree order.
	dirs   []openDir
	opaque string // name of the opaque attribute
	ns     userns.Namespace
	buf    []byte
	// earlier is a layer that files can be taken from which are the same here; nil for none.
	earlier *earlier
}

// earlier is a committed layer. Its files are never changed, so one that is the same in another layer can be the same file
// there, by a hard link.
type earlier struct {
	manifest *layer.Manifest
	disk     *disk
}

type openDir struct {
	path string
	file *os.File
}

func newDisk(root *rootfs.Root, s *Store) *disk {
	return &disk{root: root, opaque: s.opaque, ns: s.ns}
}

func (d *disk) close() {
	for _, o := range d.dirs {
		o.file.Close()
	}
	d.dirs = nil
	if d.earlier != nil {
		d.earlier.disk.close()
		d.earlier.disk.root.Close()
		d.earlier = nil
	}
}

// link makes the entry a further name of the earlier layer's file of the same path, if that is the same in everything.
func (d *disk) link(dir int, e *layer.Entry) bool {
	if d.earlier == nil || e.Digest == (layer.Digest{}) {
		return false
	}
	old, ok := d.earlier.manifest.Lookup(e.Path)
	if !ok || old.Type != layer.File || old.Digest != e.Digest || old.Size != e.Size || old.Mode != e.Mode || old.UID != e.UID || old.GID != e.GID ||
		!old.ModTime.Equal(e.ModTime) || !slices.Equal(old.Xattrs, e.Xattrs) {
		return false
	}
	from, err := d.earlier.disk.parent(e.Path)
	// The file can have as many names as it may have, or be gone: then it is written.
	return err == nil && unix.Linkat(from, e.Name(), dir, e.Name(), 0) == nil
}

// parent returns a descriptor of the directory that holds path, which stays open until the next call.
func (d *disk) parent(path string) (int, error) {
	dir := layer.Parent(path)
	for len(d.dirs) > 0 {
		top := d.dirs[len(d.dirs)-1]
		if layer.Within(dir, top.path) {
			break
		}
		top.file.Close()
		d.dirs = d.dirs[:len(d.dirs)-1]
	}
	if n := len(d.dirs); n > 0 && d.dirs[n-1].path == dir {
		return int(d.dirs[n-1].file.Fd()), nil
	}
	if dir == "" {
		return d.root.Fd(), nil
	}
	from, rel := d.root, dir
	if n := len(d.dirs); n > 0 {
		from, rel = rootfs.At(d.dirs[n-1].file), strings.TrimPrefix(dir[len(d.dirs[n-1].path):], "/")
	}
	f, err := from.OpenNoSymlinks(rel, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, err
	}
	if len(d.dirs) >= 64 {
		d.dirs[0].file.Close()
		d.dirs = append(d.dirs[:0], d.dirs[1:]...)
	}
	d.dirs = append(d.dirs, openDir{dir, f})
	return int(f.Fd()), nil
}

// put makes the entry; nothing is there yet. For a File it reads body to its end and sets e's Size and Digest.
// A directory's times are set by times, once everything is in it.
func (d *disk) put(e *layer.Entry, body io.Reader) error {
	if e.Path == "" {
		return d.attributes(e)
	}
	dir, err := d.parent(e.Path)
	if err != nil {
		return err
	}
	name := e.Name()
	fail := func(op string, err error) error {
		if err == nil {
			return nil
		}
		return &os.PathError{Op: op, Path: e.Path, Err: err}
	}
	switch e.Type {
	case layer.File:
		return d.file(dir, e, body)
	case layer.Dir:
		if err := unix.Mkdirat(dir, name, 0o700); err != nil {
			return fail("mkdir", err)
		}
	case layer.Symlink:
		if err := unix.Symlinkat(e.Link, dir, name); err != nil {
			return fail("symlink", err)
		}
	case layer.Hardlink:
		from, err := d.root.OpenNoSymlinks(layer.Parent(e.Link), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer from.Close()
		base := e.Link[strings.LastIndexByte(e.Link, '/')+1:]
		return fail("link", unix.Linkat(int(from.Fd()), base, dir, name, 0))
	case layer.Char, layer.Block:
		kind := uint32(unix.S_IFCHR)
		if e.Type == layer.Block {
			kind = unix.S_IFBLK
		}
		if d.ns.Nested {
			err = device(dir, e)
		} else {
			err = unix.Mknodat(dir, name, kind|0o600, int(unix.Mkdev(e.Major, e.Minor)))
		}
	case layer.Fifo:
		err = unix.Mknodat(dir, name, unix.S_IFIFO|0o600, 0)
	case layer.Whiteout:
		return fail("mknod", unix.Mknodat(dir, name, unix.S_IFCHR, 0))
	default:
		return fmt.Errorf("BUG: entry %q has type %q", e.Path, e.Type)
	}
	if err != nil {
		return fail("mknod", err)
	}
	if err := d.attributesAt(dir, name, e); err != nil {
		return err
	}
	if e.Type == layer.Dir {
		return nil
	}
	return fail("utimensat", setTime(dir, name, e.ModTime))
}

func (d *disk) file(dir int, e *layer.Entry, body io.Reader) error {
	if d.link(dir, e) {
		return nil
	}
	fd, err := unix.Openat(dir, e.Name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: e.Path, Err: err}
	}
	f := os.NewFile(uintptr(fd), e.Path)
	h := sha256.New()
	n, err := d.copy(f, h, body)
	if err == nil {
		e.Size = n
		h.Sum(e.Digest[:0])
		err = d.attributesFd(fd, e)
	}
	if err == nil {
		ts := [2]unix.Timespec{timespec(e.ModTime), timespec(e.ModTime)}
		err = unix.UtimesNanoAt(fd, "", ts[:], unix.AT_EMPTY_PATH)
	}
	return errors.Join(err, f.Close())
}

// zero is compared with blocks that may become holes.
var zero [4096]byte

// copy moves body into the file and the hash; blocks of zeros become holes.
func (d *disk) copy(f *os.File, h io.Writer, body io.Reader) (int64, error) {
	if d.buf == nil {
		d.buf = make([]byte, 128<<10) // most layers have no file at all
	}
	var n int64
	hole := false
	for {
		k, err := io.ReadFull(body, d.buf)
		p := d.buf[:k]
		h.Write(p)
		for off := 0; off < k; {
			end, skip := off, allZero(p[off:min(k, off+len(zero))])
			for end < k && allZero(p[end:min(k, end+len(zero))]) == skip {
				end = min(k, end+len(zero))
			}
			if skip && end-off >= len(zero) {
				if _, err := f.Seek(int64(end-off), io.SeekCurrent); err != nil {
					return n, err
				}
				hole = true
			} else if _, err := f.Write(p[off:end]); err != nil {
				return n, err
			} else {
				hole = false
			}
			off = end
		}
		n += int64(k)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if hole {
				return n, f.Truncate(n)
			}
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

func allZero(p []byte) bool {
	return p[0] == 0 && string(p) == string(zero[:len(p)])
}

// attributesAt sets owner, mode and extended attributes of a name in a directory, of a symbolic link itself.
func (d *disk) attributesAt(dir int, name string, e *layer.Entry) error {
	uid, gid, held, err := owner(d.ns, e)
	if err != nil {
		return err
	}
	if e.Type != layer.Symlink && (len(e.Xattrs) > 0 || e.Opaque || held != "") {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			return d.attributesFd(fd, e)
		}
		if e.Opaque {
			return &os.PathError{Op: "open", Path: e.Path, Err: err}
		}
	}
	if err := unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: e.Path, Err: err}
	}
	if e.Type == layer.Symlink {
		return nil
	}
	if err := unix.Fchmodat(dir, name, e.Mode, 0); err != nil {
		return &os.PathError{Op: "chmod", Path: e.Path, Err: err}
	}
	return nil
}

func (d *disk) attributesFd(fd int, e *layer.Entry) error {
	uid, gid, held, err := owner(d.ns, e)
	if err != nil {
		return err
	}
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return &os.PathError{Op: "chown", Path: e.Path, Err: err}
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return &os.PathError{Op: "chmod", Path: e.Path, Err: err}
	}
	if e.Opaque {
		if err := unix.Fsetxattr(fd, d.opaque, []byte("y"), 0); err != nil {
			return &os.PathError{Op: "setxattr " + d.opaque, Path: e.Path, Err: err}
		}
	}
	if held != "" && e.Type != layer.Fifo {
		if err := unix.Fsetxattr(fd, ownerXattr, []byte(held), 0); err != nil {
			return &os.PathError{Op: "setxattr " + ownerXattr, Path: e.Path, Err: err}
		}
	}
	for _, x := range e.Xattrs {
		if !writable(d.ns, x.Name) {
			continue
		}
		if err := unix.Fsetxattr(fd, x.Name, []byte(x.Value), 0); err != nil {
			return &os.PathError{Op: "setxattr " + x.Name, Path: e.Path, Err: err}
		}
	}
	return nil
}

func (d *disk) attributes(e *layer.Entry) error {
	f, err := d.root.OpenNoSymlinks(e.Path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return d.attributesFd(int(f.Fd()), e)
}

// setDir changes what a directory that is there already is like.
func (d *disk) setDir(e *layer.Entry) error { return d.attributes(e) }

// times sets a directory's time, after its content is complete.
func (d *disk) times(e *layer.Entry) error {
	var dir int
	var name string
	if e.Path != "" {
		var err error
		if dir, err = d.parent(e.Path); err != nil {
			return err
		}
		name = e.Name()
	} else {
		f, err := d.root.OpenNoSymlinks("", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		dir = int(f.Fd())
	}
	if err := setTime(dir, name, e.ModTime); err != nil {
		return &os.PathError{Op: "utimensat", Path: e.Path, Err: err}
	}
	return nil
}

// remove deletes a path and everything below it.
func (d *disk) remove(path string) error {
	dir, err := d.parent(path)
	if err != nil {
		return err
	}
	return removeAt(dir, path[strings.LastIndexByte(path, '/')+1:])
}

func removeAt(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, n := range names {
			if err := removeAt(fd, n); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil {
		return &os.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return nil
}

func setTime(dir int, name string, t time.Time) error {
	ts := [2]unix.Timespec{timespec(t), timespec(t)}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	return unix.UtimesNanoAt(dir, name, ts[:], flags)
}

func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
