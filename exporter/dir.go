package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// DirOptions are the options of WriteDir. Files in the directory belong to the user, whoever owns them in the image, so SetID and
// Devices give the user's rights to anyone who can access the directory.
type DirOptions struct {
	// SetID keeps the set-user-ID and set-group-ID bits.
	SetID bool
	// Devices creates character and block devices, which requires root.
	Devices bool
	// Epoch, if not nil, replaces the times of all files.
	Epoch *time.Time
}

// Dropped counts what WriteDir omitted.
type Dropped struct {
	// SetID is the number of files and directories written without their set-user-ID or set-group-ID bits.
	SetID int
	// Devices is the number of devices, and hard links to them, that were omitted.
	Devices int
}

// setID is S_ISUID and S_ISGID of inode(7).
const setID = unix.S_ISUID | unix.S_ISGID

// WriteDir writes the files of a root file system to a directory of the user, which is created if it does not exist. The files
// belong to the user; modes and times are those of the image. Existing files that are not in the image are kept. Existing
// symbolic links are never followed, so nothing outside the directory is changed. It is an error if a device, named pipe or socket
// has the name of a different file of the image.
//
// Until everything is written, only the user can enter a directory that WriteDir creates; it is removed on failure. The mode of
// an existing directory is never changed.
func WriteDir(ctx context.Context, dir string, tree layer.Tree, o DirOptions) (Dropped, error) {
	above, name := split(dir)
	parent, err := OpenDir(above)
	if err != nil {
		return Dropped{}, err
	}
	defer parent.Close()
	return WriteDirAt(ctx, parent, name, dir, tree, o)
}

// WriteDirAt is like WriteDir for the directory name in parent. Errors refer to it as shown.
func WriteDirAt(ctx context.Context, parent *os.File, name, shown string, tree layer.Tree, o DirOptions) (Dropped, error) {
	w := dirWriter{
		ctx: ctx, parent: parent, name: name, shown: shown, tree: tree, options: o,
		buf: make([]byte, blockSize), devices: map[string]bool{},
	}
	if err := w.open(); err != nil {
		return w.dropped, err
	}
	defer w.root.Close()
	err := entries(ctx, tree, o.Epoch, w.entry)
	if err == nil {
		err = w.finish()
	}
	if err == nil && w.made {
		err = fchmod(w.root.File(), w.mode)
	}
	if err != nil {
		err = errors.Join(err, w.undo())
	}
	return w.dropped, err
}

// OpenDir opens a directory for access to its contents. It and its parents are created if they do not exist.
func OpenDir(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	return openDir(unix.AT_FDCWD, path, path)
}

// dirWriter writes one root file system to a directory. After the directory is opened its path is not used again, since others
// may own one of its parents and replace it.
type dirWriter struct {
	ctx context.Context
	// parent contains the directory as name; shown is how errors refer to it.
	parent      *os.File
	name, shown string
	root        *rootfs.Root
	// made reports that root was created, and mode is its mode once it is complete.
	made    bool
	mode    uint32
	tree    layer.Tree
	options DirOptions
	buf     []byte
	dropped Dropped
	dirs    []writtenDir
	// top is the path of the last directory that was created in an existing one.
	top string
	// devices are the paths of omitted devices, to which there may be hard links.
	devices map[string]bool
}

type writtenDir struct {
	layer.Entry
	existed bool
	// top identifies the directory if it was created in an existing one, where others may be able to replace it. Everything below it
	// is inaccessible to others until it gets its mode.
	top dirtree.ID
}

// open opens the directory, or creates it with mode 0700.
func (w *dirWriter) open() error {
	dir, err := makeDir(w.parent, w.name, w.shown, 0o755)
	if errors.Is(err, fs.ErrExist) {
		if dir, err = openDir(int(w.parent.Fd()), w.name, w.shown); err == nil {
			w.root = rootfs.OnHost(dir)
		}
		return err
	}
	if err != nil {
		return err
	}
	w.root, w.made = rootfs.OnHost(dir), true
	// It is empty, and a process that has it open needs permission for each lookup in it.
	var st unix.Stat_t
	if err := unix.Fstat(w.root.Fd(), &st); err != nil {
		return errors.Join(&os.PathError{Op: "stat", Path: w.shown, Err: err}, dir.Close())
	}
	w.mode = st.Mode & 0o7777
	if err := fchmod(dir, 0o700); err != nil {
		return errors.Join(err, dir.Close())
	}
	return nil
}

// split returns the parent directory and the last name of a path. A path without a last name is "." in itself.
func split(path string) (dir, name string) {
	dir, name = filepath.Split(path)
	if name == "" && dir != "" {
		if trimmed := strings.TrimRight(dir, "/"); trimmed != "" {
			return split(trimmed)
		}
		return "/", "."
	}
	if dir == "" {
		dir = "."
	}
	return dir, name
}

// openDir opens a directory for access to its contents. A symbolic link is followed.
func openDir(at int, name, shown string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: shown, Err: err}
	}
	return os.NewFile(uintptr(fd), shown), nil
}

// errReplaced is returned if another process replaced a file.
var errReplaced = errors.New("it was replaced while it was being written")

// makeDir creates a directory and opens it for reading. If it is replaced before it is open, the replacement must be empty: kiln
// changes and removes the contents of directories that it created.
func makeDir(parent *os.File, name, shown string, perm uint32) (*os.File, error) {
	if err := unix.Mkdirat(int(parent.Fd()), name, perm); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: shown, Err: err}
	}
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: shown, Err: err}
	}
	f := os.NewFile(uintptr(fd), shown)
	if _, err := f.Readdirnames(1); err == nil {
		return nil, errors.Join(&os.PathError{Op: "mkdir", Path: shown, Err: errReplaced}, f.Close())
	} else if err != io.EOF {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// undo removes the directories that were created. Directories that were moved or replaced are kept.
func (w *dirWriter) undo() error {
	if w.made {
		id, err := dirtree.Identify(w.root.File())
		if err == nil {
			err = dirtree.RemoveDirAt(int(w.parent.Fd()), w.name, id)
		}
		if err != nil {
			return fmt.Errorf("remove the incomplete %s: %w", rootdir.Shown(w.shown), err)
		}
		return nil
	}
	var err error
	for i := range w.dirs {
		if d := &w.dirs[i]; d.top != (dirtree.ID{}) {
			err = errors.Join(err, w.remove(d))
		}
	}
	return err
}

// remove removes a directory that was created in an existing one, with its contents.
func (w *dirWriter) remove(d *writtenDir) error {
	parent, err := w.root.OpenNoSymlinks(layer.Parent(d.Path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := dirtree.RemoveDirAt(int(parent.Fd()), d.Name(), d.top); err != nil {
		return fmt.Errorf("remove the incomplete %s: %w", rootdir.Shown(w.path(&d.Entry)), err)
	}
	return nil
}

// finish sets the modes and times of directories, once their contents are complete.
func (w *dirWriter) finish() error {
	for i := len(w.dirs) - 1; i >= 0; i-- {
		d := &w.dirs[i]
		f, err := w.root.OpenNoSymlinks(d.Path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(w.finishDir(f, d), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// finishDir sets the mode and time of an open directory.
func (w *dirWriter) finishDir(f *os.File, d *writtenDir) error {
	if d.top != (dirtree.ID{}) {
		if id, err := dirtree.Identify(f); err != nil {
			return err
		} else if id != d.top {
			return w.failed("chmod", &d.Entry, errReplaced)
		}
	}
	var err error
	if !d.existed {
		err = fchmod(f, d.Mode)
	}
	timeErr := setTime(int(f.Fd()), "", &d.Entry)
	if d.existed && timeErr == unix.EPERM {
		timeErr = nil // it belongs to another user
	}
	return errors.Join(err, timeErr)
}

func fchmod(f *os.File, mode uint32) error {
	if err := unix.Fchmod(int(f.Fd()), mode); err != nil {
		return &os.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	return nil
}

// entry writes one entry, except the mode and time of a directory.
func (w *dirWriter) entry(e *layer.Entry) error {
	if e.Type == layer.Hardlink && w.devices[e.Link] || (e.Type == layer.Char || e.Type == layer.Block) && !w.options.Devices {
		w.devices[e.Path] = true
		w.dropped.Devices++
		return nil
	}
	if e.Mode&setID != 0 && e.Type != layer.Symlink && e.Type != layer.Hardlink && !w.options.SetID {
		e.Mode &^= setID
		w.dropped.SetID++
	}
	parent, err := w.root.OpenNoSymlinks(layer.Parent(e.Path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	dir, name := int(parent.Fd()), e.Name()
	if e.Type == layer.Dir {
		return w.directory(parent, e)
	}
	if e.Type == layer.Hardlink {
		return w.link(dir, e)
	}
	if err := w.clearName(dir, e); err != nil {
		return err
	}
	switch e.Type {
	case layer.File:
		return w.file(dir, e)
	case layer.Symlink:
		if err := unix.Symlinkat(e.Link, dir, name); err != nil {
			return w.failed("symlink", e, err)
		}
	default:
		if err := w.node(dir, e); err != nil {
			return err
		}
	}
	return w.failed("set the time of", e, setTime(dir, name, e))
}

// errSpecial is returned for a file that WriteDir does not replace.
var errSpecial = errors.New("it is a device, a named pipe or a socket, which is not replaced")

// clearName removes a file or a symbolic link that has the name of an entry. It fails if the name belongs to a device, named pipe or
// socket, unless that is the one that the entry describes.
func (w *dirWriter) clearName(dir int, e *layer.Entry) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG, unix.S_IFLNK, unix.S_IFDIR: // unlinkat(2) fails for a directory
			err = unix.Unlinkat(dir, e.Name(), 0)
		default:
			if !isNode(&st, e) {
				err = errSpecial
			}
		}
	}
	if err == unix.ENOENT {
		return nil
	}
	return w.failed("replace", e, err)
}

// nodeKinds are the types that mknod(2) creates.
var nodeKinds = map[layer.Type]uint32{layer.Fifo: unix.S_IFIFO, layer.Char: unix.S_IFCHR, layer.Block: unix.S_IFBLK}

// isNode reports whether a file is the named pipe or device that an entry describes.
func isNode(st *unix.Stat_t, e *layer.Entry) bool {
	return st.Mode&unix.S_IFMT == nodeKinds[e.Type] && (e.Type == layer.Fifo || st.Rdev == unix.Mkdev(e.Major, e.Minor))
}

// link creates a hard link. A name that is one already is kept.
func (w *dirWriter) link(dir int, e *layer.Entry) error {
	from, err := w.root.OpenNoSymlinks(layer.Parent(e.Link), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	first := layer.Entry{Path: e.Link}
	var want, have unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), first.Name(), &want, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return w.failed("link", e, err)
	}
	if err := unix.Fstatat(dir, e.Name(), &have, unix.AT_SYMLINK_NOFOLLOW); err == nil && have.Dev == want.Dev && have.Ino == want.Ino {
		return nil
	}
	if err := w.clearName(dir, e); err != nil {
		return err
	}
	return w.failed("link", e, unix.Linkat(int(from.Fd()), first.Name(), dir, e.Name(), 0))
}

// path returns how errors refer to an entry.
func (w *dirWriter) path(e *layer.Entry) string { return filepath.Join(w.shown, e.Path) }

// failed wraps the error of an operation on an entry. It returns nil if err is nil.
func (w *dirWriter) failed(op string, e *layer.Entry, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: w.path(e), Err: err}
}

func (w *dirWriter) directory(parent *os.File, e *layer.Entry) error {
	dir := int(parent.Fd())
	existed := false
	id, err := w.mkdir(parent, e)
	if errors.Is(err, fs.ErrExist) {
		var st unix.Stat_t
		err = w.failed("mkdir", e, unix.Fstatat(dir, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW))
		existed = err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
		if err == nil && !existed {
			if err = w.clearName(dir, e); err == nil {
				id, err = w.mkdir(parent, e)
			}
		}
	}
	if err != nil {
		return err
	}
	w.dirs = append(w.dirs, writtenDir{*e, existed, id})
	return nil
}

// mkdir creates a directory. It returns its identity if it was created in an existing one.
func (w *dirWriter) mkdir(parent *os.File, e *layer.Entry) (id dirtree.ID, err error) {
	if w.top != "" && strings.HasPrefix(e.Path, w.top+"/") {
		return id, w.failed("mkdir", e, unix.Mkdirat(int(parent.Fd()), e.Name(), 0o700))
	}
	f, err := makeDir(parent, e.Name(), w.path(e), 0o700)
	if err != nil {
		return id, err
	}
	defer f.Close()
	w.top = e.Path
	return dirtree.Identify(f)
}

// node creates a named pipe or a device. An existing one is kept and gets the mode of the entry.
func (w *dirWriter) node(dir int, e *layer.Entry) error {
	err := unix.Mknodat(dir, e.Name(), nodeKinds[e.Type]|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	if err == unix.EPERM && e.Type != layer.Fifo {
		return fmt.Errorf("%w: only root can create devices; without devices=true they are omitted", w.failed("mknod", e, err))
	}
	if err != nil && err != unix.EEXIST {
		return w.failed("mknod", e, err)
	}
	fd, err := unix.Openat(dir, e.Name(), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return w.failed("open", e, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return w.failed("stat", e, err)
	}
	if !isNode(&st, e) {
		return w.failed("chmod", e, errReplaced)
	}
	// fchmod(2) does not accept an O_PATH descriptor, and opening a pipe or a device for access may have side effects.
	return w.failed("chmod", e, unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), e.Mode))
}

func (w *dirWriter) file(dir int, e *layer.Entry) error {
	src, err := w.tree.Open(e)
	if err != nil {
		return err
	}
	defer src.Close()
	fd, err := unix.Openat(dir, e.Name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return w.failed("create", e, err)
	}
	f := os.NewFile(uintptr(fd), w.path(e))
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, ctxio.Reader(w.ctx, src), w.buf)
	if err == nil {
		err = errors.Join(unix.Fchmod(fd, e.Mode), setTime(fd, "", e))
	}
	return errors.Join(err, f.Close())
}

func setTime(dir int, name string, e *layer.Entry) error {
	ts := unix.Timespec{Sec: e.ModTime.Unix(), Nsec: int64(e.ModTime.Nanosecond())}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, flags)
}
