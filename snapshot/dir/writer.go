package dir

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// Writer writes entries into a directory in the form of an overlay's lower directory: whiteouts are character devices 0:0, and
// opaque directories have an extended attribute. All paths must be physical: no component may be a symbolic link. A Writer is not
// safe for concurrent use.
type Writer struct {
	fs   *FS
	root *rootfs.Root
	// dirs are open directories on the path of the last entry, outermost first: entries mostly come in tree order.
	dirs   []openDir
	opaque string // name of the attribute that marks opaque directories
	buf    []byte
	// earlier is a layer whose files can be reused; nil for none.
	earlier *earlier
	// delta is the state for a layer with a base; nil if all files are written.
	delta    *delta
	uid, gid uint32 // of the process
}

// earlier is a committed layer. Its files never change, so an identical file in another layer can be a hard link to it.
type earlier struct {
	manifest  *layer.Manifest
	files     *Files
	own, base *Writer // base is nil if the layer has no base
}

// Reuse makes the writer create hard links to the files of a committed layer with this manifest instead of writing files that are
// identical in all attributes and whose digests are known: see Put. The caller keeps ownership of files.
func (d *Writer) Reuse(m *layer.Manifest, files *Files) {
	d.closeEarlier()
	d.earlier = &earlier{manifest: m, files: files, own: d.fs.NewWriter(files.root)}
	if files.base != nil {
		d.earlier.base = d.fs.NewWriter(files.base.root)
	}
}

// parent returns the directory that contains a path of the layer.
func (e *earlier) parent(path string) (openDir, error) {
	if e.files.at(path) != e.files {
		return e.base.parent(path)
	}
	return e.own.parent(path)
}

type openDir struct {
	path string
	file *os.File
	// plain reports that files created in the directory belong to the process's user and group, and get the requested mode less the
	// umask.
	plain bool
}

func (o openDir) fd() int { return int(o.file.Fd()) }

// NewWriter returns a Writer for the directory of root. The caller must call Close, and keeps ownership of root.
func (f *FS) NewWriter(root *rootfs.Root) *Writer {
	return &Writer{fs: f, root: root, opaque: f.prefix + opaqueMark, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}
}

// mark calls f, which creates a whiteout or an opaque mark. It does nothing if root file systems are copies.
func (d *Writer) mark(f func() error) error {
	if d.fs.Copies() {
		return nil
	}
	err := f()
	if err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EEXIST) && d.fs.TryOverlay() != nil {
		return nil
	}
	return err
}

func (d *Writer) closeDirs() {
	for _, o := range d.dirs {
		o.file.Close()
	}
	d.dirs = nil
}

// Close implements compose.Writer.
func (d *Writer) Close() {
	d.closeDirs()
	d.closeEarlier()
}

func (d *Writer) closeEarlier() {
	if d.earlier != nil {
		d.earlier.own.Close()
		if d.earlier.base != nil {
			d.earlier.base.Close()
		}
		d.earlier = nil
	}
}

// link creates the entry as a hard link to the earlier layer's file of the same path, if the two are identical.
func (d *Writer) link(dir int, e *layer.Entry) bool {
	if d.earlier == nil || e.Digest == (layer.Digest{}) {
		return false
	}
	if d.fs.Ownerless(e) {
		return false // the overlay sets no mark when it copies up a file with several names: see package diff
	}
	old, ok := d.earlier.manifest.Lookup(e.Path)
	if !ok || old.Type != layer.File || old.Digest != e.Digest || old.Size != e.Size ||
		old.Mode != e.Mode || old.UID != e.UID || old.GID != e.GID ||
		!old.ModTime.Equal(e.ModTime) || !slices.Equal(old.Xattrs, e.Xattrs) {
		return false
	}
	from, err := d.earlier.parent(e.Path)
	// Linking fails if the file has the maximum number of links, or was removed: then it is written.
	return err == nil && unix.Linkat(from.fd(), e.Name(), dir, e.Name(), 0) == nil
}

// parent returns the directory that contains path. It stays open until the next call.
func (d *Writer) parent(path string) (openDir, error) {
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

// Directory returns the descriptor of the directory that contains path or, for "", of the writer's own directory. It is valid
// until the next call of the writer.
func (d *Writer) Directory(path string) (int, error) {
	if path == "" {
		return d.root.Fd(), nil
	}
	dir, err := d.parent(path)
	if err != nil {
		return 0, err
	}
	return dir.fd(), nil
}

// plain returns openDir.plain for an open directory. It is false if a set-group-ID bit or a mount option (ext4(5), grpid) gives
// new files another group. No directory has a default access control list (acl(5)), since scratch's has none.
func (d *Writer) plain(dir int) bool {
	var st unix.Stat_t
	return unix.Fstat(dir, &st) == nil && st.Mode&unix.S_ISGID == 0 && st.Gid == d.gid
}

// umask returns the umask of the process, which kiln never changes, or all bits if it is unknown.
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

// made reports which attributes of a new file already match its entry.
type made struct{ owner, mode bool }

// creation returns the mode with which to create an entry, and the attributes that it then has. In a layer of many small files,
// every system call that is avoided counts.
func (d *Writer) creation(in openDir, e *layer.Entry, private uint32) (uint32, made) {
	has := made{owner: in.plain && e.UID == d.uid && e.GID == d.gid}
	if in.plain && e.Mode&^0o777 == 0 && e.Mode&umask() == 0 {
		has.mode = true
		return e.Mode, has
	}
	return private, has
}

// Put implements compose.Writer. The time of a directory is set by Finish or SetTime, once its contents are complete.
func (d *Writer) Put(e *layer.Entry, body io.Reader) error {
	if e.Path == "" {
		return d.attributes(e)
	}
	if d.delta != nil {
		if write, err := d.delta.put(d, e); err != nil || !write {
			return err
		}
	}
	return d.write(e, body)
}

// has reports whether a directory of the layer is in the layer's directory, and not only in the base.
func (d *Writer) has(dir string) bool {
	return d.delta == nil || d.delta.dirs[dir] == nil
}

// write writes an entry that is not in the base.
func (d *Writer) write(e *layer.Entry, body io.Reader) error {
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
		return &layer.FileError{Op: op, Path: e.Path, Err: err}
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
		if d.fs.NS.Nested {
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
	return fail("utimensat", SetTime(dir, name, e.ModTime))
}

func (d *Writer) file(parent openDir, e *layer.Entry, body io.Reader) error {
	dir := parent.fd()
	if d.link(dir, e) {
		return nil
	}
	mode, has := d.creation(parent, e, 0o600)
	fd, err := unix.Openat(dir, e.Name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return &layer.FileError{Op: "create", Path: e.Path, Err: err}
	}
	if err = d.fill(fd, e, body); err == nil {
		err = d.attributesFd(fd, e, has)
	}
	if err == nil {
		ts := [2]unix.Timespec{timespec(e.ModTime), timespec(e.ModTime)}
		err = unix.UtimesNanoAt(fd, "", ts[:], unix.AT_EMPTY_PATH)
	}
	if errno, ok := err.(unix.Errno); ok {
		err = &layer.FileError{Op: "write", Path: e.Path, Err: errno}
	}
	return errors.Join(err, unix.Close(fd))
}

// zero is a block of zeros, which becomes a hole.
var zero [4096]byte

// fill writes body to the file, and sets the entry's Size and Digest.
func (d *Writer) fill(fd int, e *layer.Entry, body io.Reader) error {
	hole := false
	if data, digest, ok := layer.Loaded(body); ok {
		var err error
		if hole, err = writeSparse(fd, data); err != nil {
			return err
		}
		e.Size, e.Digest = int64(len(data)), digest
	} else {
		if d.buf == nil {
			d.buf = make([]byte, 128<<10) // most layers have no files
		}
		h := sha256.New()
		e.Size = 0
		for {
			n, err := io.ReadFull(body, d.buf)
			if n > 0 {
				h.Write(d.buf[:n])
				e.Size += int64(n)
				var failed error
				if hole, failed = writeSparse(fd, d.buf[:n]); failed != nil {
					return failed
				}
			}
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				break
			}
			if err != nil {
				return err
			}
		}
		h.Sum(e.Digest[:0])
	}
	if hole {
		return unix.Ftruncate(fd, e.Size)
	}
	return nil
}

// writeSparse writes all of p. Blocks of zeros become holes, and hole reports whether the last one did: then the file ends before it.
func writeSparse(fd int, p []byte) (hole bool, err error) {
	for off := 0; off < len(p); {
		end, skip := off, allZero(p[off:min(len(p), off+len(zero))])
		for end < len(p) && allZero(p[end:min(len(p), end+len(zero))]) == skip {
			end = min(len(p), end+len(zero))
		}
		if hole = skip && end-off >= len(zero); hole {
			_, err = unix.Seek(fd, int64(end-off), unix.SEEK_CUR)
		} else {
			err = write(fd, p[off:end])
		}
		if err != nil {
			return hole, err
		}
		off = end
	}
	return hole, nil
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

// attributesAt sets the owner, mode and extended attributes of a name in a directory, without following a symbolic link, except
// those that it already has.
func (d *Writer) attributesAt(dir int, name string, e *layer.Entry, has made) error {
	if e.Type == layer.Dir && (len(e.Xattrs) > 0 || e.Opaque) {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &layer.FileError{Op: "open", Path: e.Path, Err: err}
		}
		defer unix.Close(fd)
		return d.attributesFd(fd, e, has)
	}
	uid, gid, err := d.fs.owner(e)
	if err != nil {
		return err
	}
	if !has.owner {
		if err := unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &layer.FileError{Op: "chown", Path: e.Path, Err: err}
		}
	}
	if e.Type != layer.Symlink && !has.mode {
		if err := unix.Fchmodat(dir, name, e.Mode, 0); err != nil {
			return &layer.FileError{Op: "chmod", Path: e.Path, Err: err}
		}
	}
	return d.setXattrs(Within(dir, name), e)
}

func (d *Writer) attributesFd(fd int, e *layer.Entry, has made) error {
	uid, gid, err := d.fs.owner(e)
	if err != nil {
		return err
	}
	if !has.owner {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return &layer.FileError{Op: "chown", Path: e.Path, Err: err}
		}
	}
	if !has.mode {
		if err := unix.Fchmod(fd, e.Mode); err != nil {
			return &layer.FileError{Op: "chmod", Path: e.Path, Err: err}
		}
	}
	if e.Opaque {
		if err := d.mark(func() error { return unix.Fsetxattr(fd, d.opaque, []byte(opaqueValue), 0) }); err != nil {
			return &layer.FileError{Op: "setxattr " + d.opaque, Path: e.Path, Err: err}
		}
	}
	return d.setXattrs(Target{Fd: fd}, e)
}

func (d *Writer) setXattrs(p Target, e *layer.Entry) error {
	for _, x := range e.Xattrs {
		if !d.fs.Writable(e, x.Name) {
			continue
		}
		if err := p.set(x.Name, x.Value); err != nil {
			return &layer.FileError{Op: "setxattr " + x.Name, Path: e.Path, Err: err}
		}
	}
	return nil
}

func (d *Writer) attributes(e *layer.Entry) error {
	f, err := d.root.OpenNoSymlinks(e.Path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	d.closeDirs() // files created in it may get another group now
	return d.attributesFd(int(f.Fd()), e, made{})
}

// SetDir implements compose.Writer.
func (d *Writer) SetDir(e *layer.Entry) error {
	if !d.has(e.Path) {
		dir := *e
		d.delta.dirs[e.Path] = &dir
		return nil
	}
	return d.attributes(e)
}

// SetTime sets the time of a directory, whose contents must be complete.
func (d *Writer) SetTime(e *layer.Entry) error {
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
	if err := SetTime(dir, name, e.ModTime); err != nil {
		return &layer.FileError{Op: "utimensat", Path: e.Path, Err: err}
	}
	return nil
}

// Remove implements compose.Writer.
func (d *Writer) Remove(path string) error {
	if d.delta != nil {
		return ErrNoDelta
	}
	return d.remove(path)
}

func (d *Writer) remove(path string) error {
	dir, err := d.parent(path)
	if err != nil {
		return err
	}
	return dirtree.RemoveAt(dir.fd(), path[strings.LastIndexByte(path, '/')+1:])
}

// Finish implements compose.Writer. For a delta it creates the directories that differ, and fails with ErrNoDelta if the base has
// paths that the layer does not.
func (d *Writer) Finish(dirs iter.Seq2[*layer.Entry, bool]) error {
	if d.delta != nil {
		if err := d.delta.finish(d, dirs); err != nil {
			return err
		}
	}
	removed := ""
	for e, keep := range dirs {
		if keep || !d.has(e.Path) || removed != "" && layer.Within(e.Path, removed) {
			continue
		}
		if err := d.Remove(e.Path); err != nil {
			return err
		}
		removed = e.Path
	}
	for e, keep := range dirs {
		if keep && d.has(e.Path) {
			if err := d.SetTime(e); err != nil {
				return err
			}
		}
	}
	d.Close()
	return nil
}

// SetTime sets the modification and access time of a name in a directory or, for "", of the directory itself. It does not follow
// symbolic links.
func SetTime(dir int, name string, t time.Time) error {
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
