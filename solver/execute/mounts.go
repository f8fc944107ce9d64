package execute

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/llb"
	"golang.org/x/sys/unix"
)

// below mounts the path spec.Source of a tree at spec.Target. The path is resolved inside the tree by descriptor, and what
// was opened is what gets mounted, and returned.
func (m *mounting) below(tree *os.File, spec llb.Mount) (*os.File, error) {
	f, err := rootfs.At(tree).OpenFile(spec.Source, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	clone, err := mount.Below(tree, f, true)
	if err != nil {
		return nil, err
	}
	m.add(clone, spec.Target)
	if spec.ReadOnly {
		return clone, mount.SetAttr(clone, mount.ReadOnly, true)
	}
	return clone, nil
}

// belowMapped is below for a tree whose ids are kiln's.
func (m *mounting) belowMapped(tree *os.File, spec llb.Mount) error {
	clone, err := m.below(tree, spec)
	if err != nil {
		return err
	}
	return m.mapIDs(clone)
}

// cache mounts a directory that lasts from build to build: mounts/<id>/fs in kiln's root.
func (m *mounting) cache(spec llb.Mount) error {
	name := fmt.Sprintf("%s\n%o %d:%d", spec.CacheID, spec.Mode, spec.UID, spec.GID)
	if spec.Input > 0 {
		name += "\n" + m.in[spec.Input].Content().String()
	}
	id := fmt.Sprintf("%x", sha256.Sum256([]byte(name)))
	dir, l, err := m.cacheDir(id, spec.Sharing)
	if err != nil {
		return err
	}
	m.closers = append(m.closers, func() { l.Release() })
	if err := m.fill(dir, spec); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "fs"), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if spec.Source == "" {
		spec.Source = "/"
	}
	return m.belowMapped(f, spec)
}

// cacheDir locks and returns the directory of a cache. A private cache that is in use is replaced by the next free one of
// the same id.
func (m *mounting) cacheDir(id string, sharing llb.Sharing) (string, *lock.Lock, error) {
	parent := filepath.Join(m.x.Root, "mounts")
	for n := 0; ; n++ {
		dir := filepath.Join(parent, id)
		if n > 0 {
			dir = fmt.Sprintf("%s-%d", dir, n)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", nil, err
		}
		file := filepath.Join(dir, "lock")
		var l *lock.Lock
		var err error
		switch sharing {
		case llb.SharingPrivate:
			l, err = lock.Try(file, false)
		case llb.SharingLocked:
			l, err = lock.Acquire(m.ctx, file, false)
		default:
			l, err = lock.Acquire(m.ctx, file, true)
		}
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			continue
		case errors.Is(err, fs.ErrNotExist):
			n-- // it was pruned just now
			continue
		}
		if err == nil {
			lease.Used(file, nil)
		}
		return dir, l, err
	}
}

// fill makes the cache's directory, with what it starts from, unless it is there.
func (m *mounting) fill(dir string, spec llb.Mount) error {
	l, err := lock.Acquire(m.ctx, filepath.Join(dir, "filling"), false)
	if err != nil {
		return err
	}
	defer l.Release()
	target := filepath.Join(dir, "fs")
	if _, err := os.Lstat(target); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fresh, err := os.MkdirTemp(m.x.Tmp, "cache-")
	if err != nil {
		return err
	}
	defer dirtree.Remove(fresh)
	if spec.Input > 0 {
		tree, err := m.x.Tree(m.ctx, m.in[spec.Input])
		if err != nil {
			return err
		}
		if err := m.x.Snapshots.Export(m.ctx, tree, fresh); err != nil {
			return err
		}
	} else if err := errors.Join(os.Chown(fresh, spec.UID, spec.GID), unix.Chmod(fresh, spec.Mode&0o777)); err != nil {
		return err
	}
	return os.Rename(fresh, target)
}

// secret mounts a secret as a file on a file system of its own in memory, or puts it into the environment.
func (m *mounting) secret(spec llb.Mount) error {
	value, ok, err := m.x.Secret(spec.ID)
	if err != nil {
		return err
	}
	if !ok {
		if spec.Required {
			return fmt.Errorf("secret %q is required, and the build was not given it: use --secret id=%s,src=FILE or --secret id=%s,env=VARIABLE",
				spec.ID, spec.ID, spec.ID)
		}
		value = nil
	}
	if spec.Env != "" {
		m.env = append(m.env, spec.Env+"="+string(value)) // empty without one, also where an ENV says otherwise
	}
	if !ok {
		return nil
	}
	if spec.Target == "" {
		return nil
	}
	fs, err := mount.Tmpfs(int64(len(value))+1<<20, 0o700, 0, 0)
	if err != nil {
		return err
	}
	defer fs.Close()
	f, err := rootfs.At(fs).OpenFile("secret", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(value)
	err = errors.Join(err, f.Chown(spec.UID, spec.GID), unix.Fchmod(int(f.Fd()), spec.Mode&0o7777), f.Close())
	if err != nil {
		return err
	}
	return m.belowMapped(fs, llb.Mount{Source: "/secret", Target: spec.Target, ReadOnly: true})
}
