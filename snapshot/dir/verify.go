package dir

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Verify compares the files in dir with the manifest of their layer, in both directions: names, types, modes, owners, extended
// attributes, links and bytes must match the entries, and there must be nothing that is not in an entry, such as other names,
// attributes, access control lists or flags of chattr(1). Times are not compared. If the layer is a delta, own are the paths that
// are in dir itself, and nil otherwise: see Differing. noWhiteouts reports that dir has no marks for the paths that the layer
// deletes. Verify calls damage for each file that differs, with its path in dir, and progress with the number of bytes read;
// neither is called concurrently.
func (f *FS) Verify(
	ctx context.Context, dir string, m *layer.Manifest, own map[string]bool, noWhiteouts bool, damage func(path, what string),
	progress func(int64),
) error {
	root, err := rootfs.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	top, err := root.OpenFile("", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	v := &verifier{at: dirtree.NewDescent(top), fs: f, root: root, manifest: m, seen: make([]bool, m.Entries), noWhiteouts: noWhiteouts}
	defer v.at.Close()
	v.reading, v.ctx = errgroup.WithContext(ctx)
	v.reading.SetLimit(runtime.GOMAXPROCS(0))
	var mu sync.Mutex
	v.damage = func(path, what string) {
		mu.Lock()
		defer mu.Unlock()
		damage(path, what)
	}
	v.progress = func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		progress(n)
	}
	if v.base, err = f.FlagsOf(filepath.Dir(dir)); err != nil {
		return err
	}
	if err = v.top(); err == nil {
		err = v.dir("")
	}
	if readErr := v.reading.Wait(); readErr != nil {
		err = readErr
	}
	if err != nil {
		return err
	}
	for i, seen := range v.seen {
		if e := m.At(i); !seen && e.Path != "" && !(noWhiteouts && e.Type == layer.Whiteout) && (own == nil || own[e.Path]) {
			v.damage(e.Path, "is missing")
		}
	}
	return nil
}

type verifier struct {
	ctx         context.Context
	at          *dirtree.Descent // the directory being compared
	fs          *FS
	root        *rootfs.Root
	manifest    *layer.Manifest
	seen        []bool // indexed by entry
	base        Flags  // of the parent of the layer's directory
	noWhiteouts bool   // the directory has no marks for deleted paths
	damage      func(path, what string)
	progress    func(int64)
	target      [unix.PathMax]byte
	reading     *errgroup.Group // reads the bytes of files concurrently
	bufs        sync.Pool       // of *[verifyBlock]byte
}

// verifyBlock is the number of bytes read at once.
const verifyBlock = 256 << 10

// buf returns a buffer, to be put into bufs after use.
func (v *verifier) buf() *[verifyBlock]byte {
	if b, ok := v.bufs.Get().(*[verifyBlock]byte); ok {
		return b
	}
	return new([verifyBlock]byte)
}

// dir compares the contents of the current directory, whose path is path.
func (v *verifier) dir(path string) error {
	var dirs []string
	for {
		if v.ctx.Err() != nil {
			return context.Cause(v.ctx)
		}
		names, err := v.at.File().Readdirnames(1024)
		for _, name := range names {
			isDir, err := v.name(name, layer.Join(path, name))
			if err != nil {
				return err
			}
			if isDir {
				dirs = append(dirs, name)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			v.damage(path, "cannot be read: "+err.Error())
			break
		}
	}
	for _, name := range dirs {
		if err := v.at.Enter(name); err != nil {
			v.damage(layer.Join(path, name), "cannot be read: "+err.Error())
			continue
		}
		if err := v.dir(layer.Join(path, name)); err != nil {
			return err
		}
		if err := v.at.Leave(); err != nil {
			return &layer.FileError{Op: "read", Path: path, Err: err}
		}
	}
	return nil
}

// top compares the layer's directory itself. If the manifest has no entry for it, its attributes do not matter.
func (v *verifier) top() error {
	e, ok := v.manifest.Lookup("")
	var st unix.Stat_t
	if err := unix.Fstat(v.at.Fd(), &st); err != nil {
		return err
	}
	found := foundEntry("", &st)
	if !ok {
		e = found
	}
	return v.attributes(Target{Fd: v.at.Fd()}, found, e)
}

// foundEntry returns the entry that describes the result of stat(2).
func foundEntry(path string, st *unix.Stat_t) layer.Entry {
	e := layer.Entry{Path: path, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = layer.File, st.Size
	case unix.S_IFDIR:
		e.Type = layer.Dir
	case unix.S_IFLNK:
		e.Type = layer.Symlink
	case unix.S_IFCHR:
		e.Type, e.Major, e.Minor = layer.Char, unix.Major(st.Rdev), unix.Minor(st.Rdev)
		if st.Rdev == 0 {
			e = layer.Entry{Path: path, Type: layer.Whiteout}
		}
	case unix.S_IFBLK:
		e.Type, e.Major, e.Minor = layer.Block, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFIFO:
		e.Type = layer.Fifo
	}
	return e
}

// attributes compares everything except the bytes of a file with its entry.
func (v *verifier) attributes(t Target, found, e layer.Entry) error {
	a, err := v.fs.Attributes(t)
	if err != nil {
		v.damage(e.Path, "cannot be read: "+err.Error())
		return nil
	}
	found.Xattrs, found.Opaque = a.Content, a.Opaque
	what := v.differs(found, e)
	if what == "" && len(a.Foreign) > 0 {
		what = "has extended attributes that were not there before: " + strings.Join(a.Foreign, ", ")
	}
	if what == "" && t.path == "" {
		flags, err := v.fs.flagsOf(t.Fd)
		if err != nil {
			return err
		}
		if extra := flags.beyond(v.base); extra != (Flags{}) {
			what = "has flags of chattr(1) that were not there before: " + extra.String()
		}
	}
	if what != "" {
		v.damage(e.Path, what)
	}
	return nil
}

// name compares one name in the current directory, and reports whether it is a directory whose contents must be compared too.
func (v *verifier) name(name, p string) (isDir bool, err error) {
	dir := v.at.Fd()
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		v.damage(p, "cannot be read: "+err.Error())
		return false, nil
	}
	i := v.manifest.Find(p)
	if i < 0 {
		v.damage(p, "did not exist when the layer was made")
		return false, nil
	}
	v.seen[i] = true
	e := v.manifest.At(i)
	if e.Type == layer.Hardlink {
		return false, v.link(&st, e)
	}
	found := foundEntry(p, &st)
	if found.Type == layer.Symlink {
		n, err := unix.Readlinkat(dir, name, v.target[:])
		if err != nil {
			v.damage(p, "cannot be read: "+err.Error())
			return false, nil
		}
		found.Link = string(v.target[:n])
	}
	if found.Type != layer.File && found.Type != layer.Dir {
		return false, v.attributes(Within(dir, name), found, e)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		v.damage(p, "cannot be read: "+err.Error())
		return false, nil
	}
	f := os.NewFile(uintptr(fd), p)
	mine := true
	defer func() {
		if mine {
			f.Close()
		}
	}()
	if err := v.attributes(Target{Fd: fd}, found, e); err != nil {
		return false, err
	}
	switch {
	case found.Type == layer.Dir && e.Type == layer.Dir:
		return true, nil
	case found.Type == layer.File && e.Type == layer.File && found.Size == e.Size:
		mine = false
		v.reading.Go(func() error {
			defer f.Close()
			return v.bytes(f, e)
		})
	}
	return false, nil
}

// differs describes how a file differs from the stored form of its entry. It returns "" if it does not.
func (v *verifier) differs(found, e layer.Entry) string {
	e = v.fs.Stored(e)
	switch {
	case found.Type != e.Type:
		return "has a different type"
	case e.Type != layer.Symlink && found.Mode != e.Mode:
		return fmt.Sprintf("has mode %04o and had %04o", found.Mode, e.Mode)
	case found.UID != e.UID || found.GID != e.GID:
		return fmt.Sprintf("belongs to %d:%d and belonged to %d:%d", found.UID, found.GID, e.UID, e.GID)
	case found.Size != e.Size && e.Type == layer.File:
		return fmt.Sprintf("has %d bytes and had %d", found.Size, e.Size)
	case found.Major != e.Major || found.Minor != e.Minor:
		return "is a different device"
	case found.Link != e.Link:
		return "has a different target"
	case found.Opaque != e.Opaque && !v.noWhiteouts || !slices.Equal(found.Xattrs, e.Xattrs):
		return "has different extended attributes"
	}
	return ""
}

// link checks that a hard link and its target are the same file.
func (v *verifier) link(st *unix.Stat_t, e layer.Entry) error {
	f, err := v.root.OpenNoSymlinks(e.Link, unix.O_PATH|unix.O_NOFOLLOW, 0)
	var first unix.Stat_t
	if err == nil {
		defer f.Close()
		err = unix.Fstat(int(f.Fd()), &first)
	}
	if err != nil || first.Ino != st.Ino || first.Dev != st.Dev {
		v.damage(e.Path, "is not the same file as "+e.Link)
	}
	return nil
}

func (v *verifier) bytes(f *os.File, e layer.Entry) error {
	h, buf := sha256.New(), v.buf()
	defer v.bufs.Put(buf)
	for {
		if v.ctx.Err() != nil {
			return context.Cause(v.ctx)
		}
		n, err := f.Read(buf[:])
		h.Write(buf[:n])
		v.progress(int64(n))
		if err == io.EOF {
			break
		}
		if err != nil {
			v.damage(e.Path, "cannot be read: "+err.Error())
			return nil
		}
	}
	if layer.Digest(h.Sum(nil)) != e.Digest {
		v.damage(e.Path, "has different content")
	}
	return nil
}
