package exporter

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// entries calls f for every entry of a tree, parents first, with hard links as Hardlink.
func entries(ctx context.Context, tree layer.Tree, f func(e *layer.Entry) error) error {
	links := map[string]string{}
	var walk func(dir string) error
	walk = func(dir string) error {
		list, err := tree.List(dir)
		if err != nil {
			return err
		}
		for i := range list {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			e := &list[i]
			e.Opaque, e.Implied = false, false
			if first, ok := links[e.LinkID]; ok && e.LinkID != "" {
				e.Type, e.Link, e.Size = layer.Hardlink, first, 0
			} else if e.LinkID != "" {
				links[e.LinkID] = e.Path
			}
			if err := f(e); err != nil {
				return err
			}
			if e.Type == layer.Dir {
				if err := walk(e.Path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return walk("")
}

// WriteTar writes a root file system as one tar.
func WriteTar(ctx context.Context, w io.Writer, tree layer.Tree) error {
	var walkErr error
	seq := func(yield func(*layer.Entry, layer.Body) bool) {
		stop := errors.New("stopped")
		walkErr = entries(ctx, tree, func(e *layer.Entry) error {
			if !yield(e, func(w io.Writer) error { return copyFile(w, tree, e) }) {
				return stop
			}
			return nil
		})
		if errors.Is(walkErr, stop) {
			walkErr = nil
		}
	}
	err := layer.WriteTar(ctxWriter{ctx, w}, seq)
	return errors.Join(walkErr, err)
}

func copyFile(w io.Writer, tree layer.Tree, e *layer.Entry) error {
	f, err := tree.Open(e)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{f}, make([]byte, min(256<<10, e.Size+1)))
	return err
}

// WriteDir writes a root file system's files into a directory of the user's, which is made if it is missing. They belong
// to the user; modes and times are those of the image. What is there already and not in the image stays. Links that are
// there are never followed, so nothing outside the directory is touched. Devices are left out unless the user is root.
func WriteDir(ctx context.Context, dir string, tree layer.Tree) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := rootfs.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	buf := make([]byte, blockSize)
	var dirs []layer.Entry
	err = entries(ctx, tree, func(e *layer.Entry) error {
		if e.Type == layer.Dir {
			dirs = append(dirs, *e)
		}
		return writeEntry(root, tree, e, buf)
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		f, err := root.OpenNoSymlinks(dirs[i].Path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		err = errors.Join(unix.Fchmod(int(f.Fd()), dirs[i].Mode), setTime(int(f.Fd()), "", &dirs[i]), f.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

func writeEntry(root *rootfs.Root, tree layer.Tree, e *layer.Entry, buf []byte) error {
	parent, err := root.OpenNoSymlinks(layer.Parent(e.Path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	dir, name := int(parent.Fd()), e.Name()
	fail := func(op string, err error) error {
		if err == nil {
			return nil
		}
		return &os.PathError{Op: op, Path: e.Path, Err: err}
	}
	if e.Type == layer.Dir {
		err := unix.Mkdirat(dir, name, 0o700)
		if err == unix.EEXIST {
			var st unix.Stat_t
			if err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				return nil
			}
			if err = unix.Unlinkat(dir, name, 0); err == nil {
				err = unix.Mkdirat(dir, name, 0o700)
			}
		}
		return fail("mkdir", err)
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil && err != unix.ENOENT {
		return fail("replace", err)
	}
	switch e.Type {
	case layer.File:
		return writeFile(dir, tree, e, buf)
	case layer.Symlink:
		if err := unix.Symlinkat(e.Link, dir, name); err != nil {
			return fail("symlink", err)
		}
	case layer.Hardlink:
		from, err := root.OpenNoSymlinks(layer.Parent(e.Link), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer from.Close()
		first := layer.Entry{Path: e.Link}
		return fail("link", unix.Linkat(int(from.Fd()), first.Name(), dir, name, 0))
	default:
		kind := map[layer.Type]uint32{layer.Fifo: unix.S_IFIFO, layer.Char: unix.S_IFCHR, layer.Block: unix.S_IFBLK}[e.Type]
		err := unix.Mknodat(dir, name, kind|0o600, int(unix.Mkdev(e.Major, e.Minor)))
		if err == unix.EPERM && e.Type != layer.Fifo {
			return nil
		}
		if err == nil {
			err = unix.Fchmodat(dir, name, e.Mode, 0)
		}
		if err != nil {
			return fail("mknod", err)
		}
	}
	return fail("set the time of", setTime(dir, name, e))
}

func writeFile(dir int, tree layer.Tree, e *layer.Entry, buf []byte) error {
	src, err := tree.Open(e)
	if err != nil {
		return err
	}
	defer src.Close()
	fd, err := unix.Openat(dir, e.Name(), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: e.Path, Err: err}
	}
	f := os.NewFile(uintptr(fd), e.Path)
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{src}, buf)
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
