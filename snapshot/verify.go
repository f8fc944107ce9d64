package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"golang.org/x/sys/unix"
)

// Verify compares a layer's files with its manifest: names, types, modes, owners, extended attributes, links and bytes. It
// calls damage for each file that is not what it was, by its path from the layer's directory, or for the manifest itself; progress
// takes how many bytes were read. A layer that is not there, or goes before it is looked at, is in order; one that is looked at
// stays meanwhile.
func (s *Store) Verify(ctx context.Context, id string, damage func(path, what string), progress func(int64)) error {
	l, err := lease.Take(s.Path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Release()
	m, err := layer.OpenManifest(filepath.Join(s.dir, id, "manifest"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		damage("manifest", "is not there")
		return nil
	case errors.Is(err, layer.ErrDamaged):
		damage("manifest", "is not what was written: its checksum is wrong")
		return nil
	case err != nil:
		return err
	}
	defer m.Close()
	dir, err := os.Open(s.fsDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		damage("fs", "is not there")
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	v := &verifier{ctx: ctx, store: s, root: s.fsDir(id), manifest: m, seen: make([]bool, m.Entries), progress: progress, buf: make([]byte, 256<<10)}
	v.damage = func(path, what string) { damage("fs/"+path, what) }
	if err := v.dir(dir, ""); err != nil {
		return err
	}
	for i, seen := range v.seen {
		if e := m.At(i); !seen && e.Path != "" {
			v.damage(e.Path, "is not there")
		}
	}
	return nil
}

type verifier struct {
	ctx      context.Context
	store    *Store
	root     string
	manifest *layer.Manifest
	seen     []bool // by entry
	damage   func(path, what string)
	progress func(int64)
	buf      []byte
}

func (v *verifier) dir(dir *os.File, path string) error {
	for {
		if v.ctx.Err() != nil {
			return context.Cause(v.ctx)
		}
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			p := strings.TrimPrefix(path+"/"+name, "/")
			if err := v.name(int(dir.Fd()), name, p); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			v.damage(path, "cannot be read: "+err.Error())
			return nil
		}
	}
}

// name compares one name of a directory.
func (v *verifier) name(dir int, name, p string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		v.damage(p, "cannot be read: "+err.Error())
		return nil
	}
	i := v.manifest.Find(p)
	if i < 0 {
		if st.Mode&unix.S_IFMT != unix.S_IFSOCK { // a step's sockets are no part of its layer
			v.damage(p, "was not there when the layer was made")
		}
		return nil
	}
	v.seen[i] = true
	e := v.manifest.At(i)
	if e.Type == layer.Hardlink {
		return v.link(&st, e)
	}
	if what := v.attributes(dir, name, &st, e); what != "" {
		v.damage(p, what)
		return nil
	}
	if e.Type != layer.File && e.Type != layer.Dir {
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		v.damage(p, "cannot be read: "+err.Error())
		return nil
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	if what := v.xattrs(fd, e); what != "" {
		v.damage(p, what)
	}
	if e.Type == layer.Dir {
		return v.dir(f, p)
	}
	return v.bytes(f, e)
}

// attributes says what of a name's attributes is not as in its entry.
func (v *verifier) attributes(dir int, name string, st *unix.Stat_t, e layer.Entry) string {
	types := map[layer.Type]uint32{layer.File: unix.S_IFREG, layer.Dir: unix.S_IFDIR, layer.Symlink: unix.S_IFLNK, layer.Char: unix.S_IFCHR,
		layer.Block: unix.S_IFBLK, layer.Fifo: unix.S_IFIFO, layer.Whiteout: unix.S_IFCHR}
	switch {
	case st.Mode&unix.S_IFMT != types[e.Type]:
		return "is of another type"
	case e.Type == layer.Whiteout:
		if st.Rdev != 0 {
			return "is another device"
		}
		return ""
	case e.Type != layer.Symlink && st.Mode&0o7777 != e.Mode:
		return fmt.Sprintf("has mode %04o and had %04o", st.Mode&0o7777, e.Mode)
	case st.Uid != e.UID || st.Gid != e.GID:
		return fmt.Sprintf("belongs to %d:%d and belonged to %d:%d", st.Uid, st.Gid, e.UID, e.GID)
	case e.Type == layer.File && st.Size != e.Size:
		return fmt.Sprintf("has %d bytes and had %d", st.Size, e.Size)
	case (e.Type == layer.Char || e.Type == layer.Block) && (unix.Major(st.Rdev) != e.Major || unix.Minor(st.Rdev) != e.Minor):
		return "is another device"
	case e.Type == layer.Symlink:
		n, err := unix.Readlinkat(dir, name, v.buf)
		if err != nil {
			return "cannot be read: " + err.Error()
		}
		if string(v.buf[:n]) != e.Link {
			return "leads elsewhere"
		}
	}
	return ""
}

// link compares a further name of a file with the name that has the file.
func (v *verifier) link(st *unix.Stat_t, e layer.Entry) error {
	var first unix.Stat_t
	if err := unix.Lstat(filepath.Join(v.root, e.Link), &first); err != nil || first.Ino != st.Ino || first.Dev != st.Dev {
		v.damage(e.Path, "is not the same file as "+e.Link)
	}
	return nil
}

func (v *verifier) xattrs(fd int, e layer.Entry) string {
	names, err := listXattrs(fd)
	if err != nil {
		return "cannot be read: " + err.Error()
	}
	var found []layer.Xattr
	opaque := false
	for _, name := range names {
		if name == v.store.opaque {
			opaque = true
			continue
		}
		if !layer.KeepXattr(name) {
			continue
		}
		value, err := getXattr(fd, name)
		if err != nil {
			return "cannot be read: " + err.Error()
		}
		found = append(found, layer.Xattr{Name: name, Value: value})
	}
	if opaque != e.Opaque || !slices.Equal(found, e.Xattrs) {
		return "has other extended attributes"
	}
	return ""
}

func (v *verifier) bytes(f *os.File, e layer.Entry) error {
	h := sha256.New()
	for {
		if v.ctx.Err() != nil {
			return context.Cause(v.ctx)
		}
		n, err := f.Read(v.buf)
		h.Write(v.buf[:n])
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
		v.damage(e.Path, "holds other bytes")
	}
	return nil
}
