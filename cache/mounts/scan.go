package mounts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// TooLargeError says that a mount has more than a limit allows.
type TooLargeError struct{ Msg string }

func (e *TooLargeError) Error() string { return e.Msg }

// scan calls visit for each file in the directory top, in the order of layer.Compare, the directory itself first. It closes top. What
// cannot travel is left out: devices, pipes and sockets; bits and attributes that give privileges; names that a layer cannot have. Other
// processes may change the files meanwhile: what vanishes is left out as well.
func scan(ctx context.Context, disk *dir.FS, top *os.File, limit int64, visit func(*layer.Entry) error) error {
	s := &scanner{ctx: ctx, disk: disk, at: dirtree.NewDescent(top), names: map[inode]string{}, limit: limit, visit: visit}
	defer s.at.Close()
	var st unix.Stat_t
	if err := unix.Fstat(s.at.Fd(), &st); err != nil {
		return err
	}
	return s.dir("", &st)
}

type inode struct{ dev, ino uint64 }

type scanner struct {
	ctx   context.Context
	disk  *dir.FS
	at    *dirtree.Descent
	names map[inode]string // of files that have several, the first that was found
	limit int64
	visit func(*layer.Entry) error

	files int
	size  int64
}

// dir visits the directory that the scanner is at, and everything in it.
func (s *scanner) dir(path string, st *unix.Stat_t) error {
	e := entryOf(path, st)
	e.Type, e.Mode = layer.Dir, st.Mode&dirMode
	if err := s.attributes(&e, dir.Target{Fd: s.at.Fd()}); err != nil {
		return err
	}
	if err := s.add(&e); err != nil {
		return err
	}
	names, err := s.at.File().Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := ctxio.Ended(s.ctx); err != nil {
			return err
		}
		if err := s.name(layer.Join(path, name), name); err != nil {
			return err
		}
	}
	return nil
}

// name visits a name in the directory that the scanner is at.
func (s *scanner) name(path, name string) error {
	if layer.BadName(name) != "" || len(path) >= layer.MaxPath {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(s.at.Fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return ignoreGone(err)
	}
	e := entryOf(path, &st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := s.at.Enter(name); err != nil {
			return ignoreGone(err)
		}
		return errors.Join(s.dir(path, &st), s.at.Leave())
	case unix.S_IFLNK:
		target := make([]byte, layer.MaxPath)
		n, err := unix.Readlinkat(s.at.Fd(), name, target)
		if err != nil || n == 0 || n == len(target) {
			return ignoreGone(err)
		}
		e.Type, e.Mode, e.Link = layer.Symlink, 0o777, string(target[:n])
	case unix.S_IFREG:
		e.Type, e.Mode, e.Size = layer.File, st.Mode&fileMode, st.Size
		if st.Nlink > 1 {
			if first, ok := s.names[inode{st.Dev, st.Ino}]; ok {
				e.Type, e.Link, e.Size = layer.Hardlink, first, 0
				return s.add(&e)
			}
			s.names[inode{st.Dev, st.Ino}] = path
		}
		if err := s.attributes(&e, dir.Within(s.at.Fd(), name)); err != nil {
			return ignoreGone(err)
		}
	default:
		return nil
	}
	return s.add(&e)
}

// The bits of modes that travel. A program that runs as another user than who starts it is no cache.
const (
	fileMode = 0o777
	dirMode  = 0o3777
)

func entryOf(path string, st *unix.Stat_t) layer.Entry {
	return layer.Entry{Path: path, UID: st.Uid, GID: st.Gid, ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec)}
}

// attributePrefix begins the names of the extended attributes that travel.
const attributePrefix = "user."

func (s *scanner) attributes(e *layer.Entry, t dir.Target) error {
	a, err := s.disk.Attributes(t)
	if err != nil {
		return fmt.Errorf("read the attributes of /%s: %w", layer.Clip(e.Path), err)
	}
	e.Xattrs = slices.DeleteFunc(a.Content, func(x layer.Xattr) bool { return !strings.HasPrefix(x.Name, attributePrefix) })
	return nil
}

func (s *scanner) add(e *layer.Entry) error {
	if s.files++; s.files > MaxFiles {
		return &TooLargeError{fmt.Sprintf("it has more than %d files", MaxFiles)}
	}
	if s.size += e.Size; s.size > s.limit {
		return &TooLargeError{fmt.Sprintf("its files have more than the %s that are allowed", termtext.Size(s.limit))}
	}
	return s.visit(e)
}

// ignoreGone returns err unless it says that a file is gone, or has become another.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}
