package snapshot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/internal/userns"
	"golang.org/x/sys/unix"
)

// disk writes entries into a directory in the form of an overlay's lower directory: whiteouts are character devices 0:0,
// opaque directories carry an extended attribute. Every path it is given is physical, so that no component may be a
// symbolic link, and every operation is relative to the descriptor of the directory it happens in.
type disk struct {
	store *Store
	root  *rootfs.Root
	// dirs are the open directories on the way to the last entry, outermost first: entries mostly come in tree order.
	dirs   []openDir
	opaque string // name of the opaque attribute
	ns     userns.Namespace
	buf    []byte
	// earlier is a layer that files can be taken from which are the same here; nil for none.
	earlier *earlier
	// over is the layer that what is written is over; nil for none.
	over     *over
	uid, gid uint32 // the process's
}

// earlier is a committed layer. Its files are never changed, so one that is the same in another layer can be the same file
// there, by a hard link.
type earlier struct {
	manifest *layer.Manifest
	files    *layerFiles
	own      *disk
	under    *disk // of what the layer is over; nil for none
}

// setEarlier has files taken from a layer with this manifest, in the place of another.
func (d *disk) setEarlier(m *layer.Manifest, id string) error {
	d.closeEarlier()
	files, err := d.store.filesOf(id, m)
	if err != nil {
		return err
	}
	d.earlier = &earlier{manifest: m, files: files, own: newDisk(files.root, d.store)}
	if files.under != nil {
		d.earlier.under = newDisk(files.under.root, d.store)
	}
	return nil
}

// parent is the disk's parent of a path of the layer.
func (e *earlier) parent(path string) (openDir, error) {
	if e.files.at(path) != e.files {
		return e.under.parent(path)
	}
	return e.own.parent(path)
}

type openDir struct {
	path string
	file *os.File
	// plain says that what is made in the directory belongs to the process's user and group, and has the mode that was asked
	// for as the umask leaves it.
	plain bool
}

func (o openDir) fd() int { return int(o.file.Fd()) }

func newDisk(root *rootfs.Root, s *Store) *disk {
	return &disk{store: s, root: root, opaque: s.mark + opaqueMark, ns: s.ns, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
}

// mark calls f, which makes one of the marks by which an overlay sees what a layer deletes. Where roots are copies there are none.
func (d *disk) mark(f func() error) error {
	if d.store.copies() {
		return nil
	}
	err := f()
	if err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EEXIST) && d.store.doubt() {
		return nil
	}
	return err
}

func (d *disk) closeDirs() {
	for _, o := range d.dirs {
		o.file.Close()
	}
	d.dirs = nil
}

func (d *disk) close() {
	d.closeDirs()
	d.closeEarlier()
}

func (d *disk) closeEarlier() {
	if d.earlier != nil {
		d.earlier.own.close()
		if d.earlier.under != nil {
			d.earlier.under.close()
		}
		d.earlier = nil
	}
}

// link makes the entry a further name of the earlier layer's file of the same path, if that is the same in everything.
func (d *disk) link(dir int, e *layer.Entry) bool {
	if d.earlier == nil || e.Digest == (layer.Digest{}) {
		return false
	}
	if ownerless(d.ns, e) {
		return false // the overlay tells of a file with several names less when it copies it up: see upperReader.restore
	}
	old, ok := d.earlier.manifest.Lookup(e.Path)
	if !ok || old.Type != layer.File || old.Digest != e.Digest || old.Size != e.Size || old.Mode != e.Mode || old.UID != e.UID || old.GID != e.GID ||
		!old.ModTime.Equal(e.ModTime) || !slices.Equal(old.Xattrs, e.Xattrs) {
		return false
	}
	from, err := d.earlier.parent(e.Path)
	// The file can have as many names as it may have, or be gone: then it is written.
	return err == nil && unix.Linkat(from.fd(), e.Name(), dir, e.Name(), 0) == nil
}

// parent returns the directory that holds path, which stays open until the next call.
func (d *disk) parent(path string) (openDir, error) {
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
		return d.dirs[n-1], nil
	}
	if dir == "" {
		return openDir{file: d.root.File(), plain: d.plain(d.root.Fd())}, nil
	}
	from, rel := d.root, dir
	if n := len(d.dirs); n > 0 {
		from, rel = rootfs.At(d.dirs[n-1].file), strings.TrimPrefix(dir[len(d.dirs[n-1].path):], "/")
	}
	f, err := from.OpenNoSymlinks(rel, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return openDir{}, err
	}
	if len(d.dirs) >= 64 {
		d.dirs[0].file.Close()
		d.dirs = append(d.dirs[:0], d.dirs[1:]...)
	}
	o := openDir{path: dir, file: f, plain: d.plain(int(f.Fd()))}
	d.dirs = append(d.dirs, o)
	return o, nil
}

// plain is openDir's for an open directory. It is not where a set-group-ID bit or a mount option (ext4(5), grpid) gives new
// files another group. No directory has a default access control list (acl(5)), since scratch's has none.
func (d *disk) plain(dir int) bool {
	var st unix.Stat_t
	return unix.Fstat(dir, &st) == nil && st.Mode&unix.S_ISGID == 0 && st.Gid == d.gid
}

// umask returns the process's, which nothing in kiln changes, or all bits if it cannot be known.
var umask = sync.OnceValue(func() uint32 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Umask:"); ok {
			if mask, err := strconv.ParseUint(strings.TrimSpace(value), 8, 32); err == nil {
				return uint32(mask)
			}
		}
	}
	return 0o777
})

// made says what a new name has already of what its entry says.
type made struct{ owner, mode bool }

// creation returns the mode to make an entry with, and what it then has: every system call that is not made counts, in a
// layer of many small files.
func (d *disk) creation(in openDir, e *layer.Entry, private uint32) (uint32, made) {
	has := made{owner: in.plain && e.UID == d.uid && e.GID == d.gid}
	if in.plain && e.Mode&^0o777 == 0 && e.Mode&umask() == 0 {
		has.mode = true
		return e.Mode, has
	}
	return private, has
}

// put makes the entry; nothing is there yet. For a File it reads body to its end and sets e's Size and Digest.
// A directory's times are set by times, once everything is in it.
func (d *disk) put(e *layer.Entry, body io.Reader) error {
	if e.Path == "" {
		return d.attributes(e)
	}
	if d.over != nil {
		if write, err := d.over.put(d, e); err != nil || !write {
			return err
		}
	}
	return d.write(e, body)
}

// has reports whether a directory of the layer is there, and not only in the layer that this is over.
func (d *disk) has(dir string) bool {
	return d.over == nil || d.over.dirs[dir] == nil
}

// write is put of what is not in the layer that this is over.
func (d *disk) write(e *layer.Entry, body io.Reader) error {
	parent, err := d.parent(e.Path)
	if err != nil {
		return err
	}
	dir, name := parent.fd(), e.Name()
	var has made
	fail := func(op string, err error) error {
		if err == nil {
			return nil
		}
		return &os.PathError{Op: op, Path: e.Path, Err: err}
	}
	switch e.Type {
	case layer.File:
		return d.file(parent, e, body)
	case layer.Dir:
		var mode uint32
		mode, has = d.creation(parent, e, 0o700)
		if err := unix.Mkdirat(dir, name, mode); err != nil {
			return fail("mkdir", err)
		}
	case layer.Symlink:
		_, has = d.creation(parent, e, 0)
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
		return fail("mknod", d.mark(func() error { return unix.Mknodat(dir, name, unix.S_IFCHR, 0) }))
	default:
		return fmt.Errorf("BUG: entry %q has type %q", e.Path, e.Type)
	}
	if err != nil {
		return fail("mknod", err)
	}
	if err := d.attributesAt(dir, name, e, has); err != nil {
		return err
	}
	if e.Type == layer.Dir {
		return nil
	}
	return fail("utimensat", setTime(dir, name, e.ModTime))
}

func (d *disk) file(parent openDir, e *layer.Entry, body io.Reader) error {
	dir := parent.fd()
	if d.link(dir, e) {
		return nil
	}
	mode, has := d.creation(parent, e, 0o600)
	fd, err := unix.Openat(dir, e.Name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return &os.PathError{Op: "create", Path: e.Path, Err: err}
	}
	h := sha256.New()
	n, err := d.copy(fd, h, body)
	if err == nil {
		e.Size = n
		h.Sum(e.Digest[:0])
		err = d.attributesFd(fd, e, has)
	}
	if err == nil {
		ts := [2]unix.Timespec{timespec(e.ModTime), timespec(e.ModTime)}
		err = unix.UtimesNanoAt(fd, "", ts[:], unix.AT_EMPTY_PATH)
	}
	if errno, ok := err.(unix.Errno); ok {
		err = &os.PathError{Op: "write", Path: e.Path, Err: errno}
	}
	return errors.Join(err, unix.Close(fd))
}

// zero is compared with blocks that may become holes.
var zero [4096]byte

// copy moves body into the file and the hash; blocks of zeros become holes.
func (d *disk) copy(fd int, h io.Writer, body io.Reader) (int64, error) {
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
				if _, err := unix.Seek(fd, int64(end-off), unix.SEEK_CUR); err != nil {
					return n, err
				}
				hole = true
			} else if err := write(fd, p[off:end]); err != nil {
				return n, err
			} else {
				hole = false
			}
			off = end
		}
		n += int64(k)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if hole {
				return n, unix.Ftruncate(fd, n)
			}
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// write writes all of p.
func write(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil && err != unix.EINTR {
			return err
		}
		p = p[max(0, n):]
	}
	return nil
}

func allZero(p []byte) bool {
	return p[0] == 0 && string(p) == string(zero[:len(p)])
}

// attributesAt sets owner, mode and extended attributes of a name in a directory, of a symbolic link itself, but not what it
// has.
func (d *disk) attributesAt(dir int, name string, e *layer.Entry, has made) error {
	if e.Type == layer.Dir && (len(e.Xattrs) > 0 || e.Opaque) {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: e.Path, Err: err}
		}
		defer unix.Close(fd)
		return d.attributesFd(fd, e, has)
	}
	uid, gid, err := owner(d.ns, e)
	if err != nil {
		return err
	}
	if !has.owner {
		if err := unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "chown", Path: e.Path, Err: err}
		}
	}
	if e.Type != layer.Symlink && !has.mode {
		if err := unix.Fchmodat(dir, name, e.Mode, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: e.Path, Err: err}
		}
	}
	return d.setXattrs(within(dir, name), e)
}

func (d *disk) attributesFd(fd int, e *layer.Entry, has made) error {
	uid, gid, err := owner(d.ns, e)
	if err != nil {
		return err
	}
	if !has.owner {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return &os.PathError{Op: "chown", Path: e.Path, Err: err}
		}
	}
	if !has.mode {
		if err := unix.Fchmod(fd, e.Mode); err != nil {
			return &os.PathError{Op: "chmod", Path: e.Path, Err: err}
		}
	}
	if e.Opaque {
		if err := d.mark(func() error { return unix.Fsetxattr(fd, d.opaque, []byte(opaqueValue), 0) }); err != nil {
			return &os.PathError{Op: "setxattr " + d.opaque, Path: e.Path, Err: err}
		}
	}
	return d.setXattrs(target{fd: fd}, e)
}

func (d *disk) setXattrs(p target, e *layer.Entry) error {
	for _, x := range e.Xattrs {
		if !writable(d.ns, e, x.Name) {
			continue
		}
		if err := p.set(x.Name, x.Value); err != nil {
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
	d.closeDirs() // what is made below may get another group now
	return d.attributesFd(int(f.Fd()), e, made{})
}

// setDir changes what a directory that is there already is like.
func (d *disk) setDir(e *layer.Entry) error {
	if !d.has(e.Path) {
		dir := *e
		d.over.dirs[e.Path] = &dir
		return nil
	}
	return d.attributes(e)
}

// times sets a directory's time, after its content is complete.
func (d *disk) times(e *layer.Entry) error {
	var dir int
	var name string
	if e.Path != "" {
		parent, err := d.parent(e.Path)
		if err != nil {
			return err
		}
		dir, name = parent.fd(), e.Name()
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
	if d.over != nil {
		return ErrNotOver
	}
	dir, err := d.parent(path)
	if err != nil {
		return err
	}
	return dirtree.RemoveAt(dir.fd(), path[strings.LastIndexByte(path, '/')+1:])
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
