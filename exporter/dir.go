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

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// DirOptions say what else WriteDir writes. Files in a directory belong to the user, whoever owns them in the image, so that these give
// the user's rights to whoever reaches the directory.
type DirOptions struct {
	// SetID keeps the set-user-ID and set-group-ID bits.
	SetID bool
	// Devices makes character and block devices, which only root can.
	Devices bool
}

// Dropped counts what WriteDir did not write.
type Dropped struct {
	// SetID are the files and directories without the set-user-ID or set-group-ID bits that they have in the image.
	SetID int
	// Devices are the devices, and further links to them, that were left out.
	Devices int
}

// setID are the bits that inode(7) calls S_ISUID and S_ISGID.
const setID = unix.S_ISUID | unix.S_ISGID

// WriteDir writes a root file system's files into a directory of the user's, which is made if it is missing. They belong to the user; modes
// and times are those of the image. What is there already and not in the image stays. Links that are there are never followed, so nothing
// outside the directory is touched.
//
// A directory that WriteDir makes can be entered by nobody but the user until everything is written, and is removed if that fails. The mode
// of a directory that exists is never changed.
func WriteDir(ctx context.Context, dir string, tree layer.Tree, o DirOptions) (Dropped, error) {
	w := dirWriter{ctx: ctx, tree: tree, options: o, buf: make([]byte, blockSize), devices: map[string]bool{}}
	made, mode, err := w.open(dir)
	if err != nil {
		return w.dropped, err
	}
	defer w.root.Close()
	if err = entries(ctx, tree, w.entry); err == nil {
		err = w.finish()
	}
	if err == nil && made {
		err = fchmod(w.root.File(), mode)
	}
	if err != nil {
		err = errors.Join(err, w.undo(dir, made))
	}
	return w.dropped, err
}

// dirWriter writes one root file system into a directory.
type dirWriter struct {
	ctx     context.Context
	root    *rootfs.Root
	tree    layer.Tree
	options DirOptions
	buf     []byte
	dropped Dropped
	dirs    []writtenDir
	// tops are the directories that were made in directories that existed.
	tops []string
	// devices are the paths of those that were left out, to which there may be hard links.
	devices map[string]bool
}

type writtenDir struct {
	layer.Entry
	existed bool
}

// open opens the directory. If it was missing, it made it, with mode 0700, and returns the mode that the user's umask gives it.
func (w *dirWriter) open(dir string) (made bool, mode uint32, err error) {
	if err := os.MkdirAll(filepath.Dir(filepath.Clean(dir)), 0o755); err != nil {
		return false, 0, err
	}
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
		w.root, err = rootfs.Open(dir)
		return false, 0, err
	} else if err != nil {
		return false, 0, err
	}
	// It is empty, and whoever has it open needs the permission anew for each look-up in it.
	fd, err := unix.Open(filepath.Clean(dir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	w.root = rootfs.At(os.NewFile(uintptr(fd), dir))
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, 0, errors.Join(&os.PathError{Op: "stat", Path: dir, Err: err}, w.root.Close())
	}
	if err := unix.Fchmod(fd, 0o700); err != nil {
		return false, 0, errors.Join(&os.PathError{Op: "chmod", Path: dir, Err: err}, w.root.Close())
	}
	return true, st.Mode & 0o7777, nil
}

// undo removes the directories that were made.
func (w *dirWriter) undo(dir string, made bool) error {
	if made {
		return dirtree.Remove(dir)
	}
	var err error
	for _, top := range w.tops {
		err = errors.Join(err, w.remove(top))
	}
	return err
}

// remove removes a directory with all that is in it.
func (w *dirWriter) remove(path string) error {
	parent, err := w.root.OpenNoSymlinks(layer.Parent(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	return dirtree.RemoveAt(int(parent.Fd()), path[strings.LastIndexByte(path, '/')+1:])
}

// finish gives directories their modes and times, now that nothing more is written into them.
func (w *dirWriter) finish() error {
	for i := len(w.dirs) - 1; i >= 0; i-- {
		d := &w.dirs[i]
		f, err := w.root.OpenNoSymlinks(d.Path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		if !d.existed {
			err = fchmod(f, d.Mode)
		}
		timeErr := setTime(int(f.Fd()), "", &d.Entry)
		if d.existed && timeErr == unix.EPERM {
			timeErr = nil // it belongs to somebody else
		}
		if err = errors.Join(err, timeErr, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func fchmod(f *os.File, mode uint32) error {
	if err := unix.Fchmod(int(f.Fd()), mode); err != nil {
		return &os.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	return nil
}

// entry writes one entry, but for the mode and the time of a directory.
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
		return w.directory(dir, e)
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil && err != unix.ENOENT {
		return failed("replace", e, err)
	}
	switch e.Type {
	case layer.File:
		return w.file(dir, e)
	case layer.Symlink:
		if err := unix.Symlinkat(e.Link, dir, name); err != nil {
			return failed("symlink", e, err)
		}
	case layer.Hardlink:
		from, err := w.root.OpenNoSymlinks(layer.Parent(e.Link), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer from.Close()
		first := layer.Entry{Path: e.Link}
		return failed("link", e, unix.Linkat(int(from.Fd()), first.Name(), dir, name, 0))
	default:
		if err := w.node(dir, e); err != nil {
			return err
		}
	}
	return failed("set the time of", e, setTime(dir, name, e))
}

// failed returns an error of an operation on an entry; nil for none.
func failed(op string, e *layer.Entry, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: e.Path, Err: err}
}

func (w *dirWriter) directory(dir int, e *layer.Entry) error {
	err := unix.Mkdirat(dir, e.Name(), 0o700)
	existed := false
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err = unix.Fstatat(dir, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
			existed = st.Mode&unix.S_IFMT == unix.S_IFDIR
		}
		if err == nil && !existed {
			if err = unix.Unlinkat(dir, e.Name(), 0); err == nil {
				err = unix.Mkdirat(dir, e.Name(), 0o700)
			}
		}
	}
	if err != nil {
		return failed("mkdir", e, err)
	}
	w.dirs = append(w.dirs, writtenDir{*e, existed})
	if n := len(w.tops); !existed && (n == 0 || !strings.HasPrefix(e.Path, w.tops[n-1]+"/")) {
		w.tops = append(w.tops, e.Path)
	}
	return nil
}

// node makes a named pipe or a device.
func (w *dirWriter) node(dir int, e *layer.Entry) error {
	kind := map[layer.Type]uint32{layer.Fifo: unix.S_IFIFO, layer.Char: unix.S_IFCHR, layer.Block: unix.S_IFBLK}[e.Type]
	err := unix.Mknodat(dir, e.Name(), kind|0o600, int(unix.Mkdev(e.Major, e.Minor)))
	if err == unix.EPERM && e.Type != layer.Fifo {
		return fmt.Errorf("%w: only root can make devices; without devices=true they are left out", failed("mknod", e, err))
	}
	if err != nil {
		return failed("mknod", e, err)
	}
	fd, err := unix.Openat(dir, e.Name(), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", e, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("stat", e, err)
	}
	if st.Mode&unix.S_IFMT != kind {
		return failed("chmod", e, errors.New("it was replaced while it was being written"))
	}
	// fchmod(2) does not take a descriptor of O_PATH, and opening a pipe or a device for more may have effects.
	return failed("chmod", e, unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), e.Mode))
}

func (w *dirWriter) file(dir int, e *layer.Entry) error {
	src, err := w.tree.Open(e)
	if err != nil {
		return err
	}
	defer src.Close()
	fd, err := unix.Openat(dir, e.Name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return failed("create", e, err)
	}
	f := os.NewFile(uintptr(fd), e.Path)
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
