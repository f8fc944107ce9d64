package execute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/kilnbuild/kiln/internal/cachemount"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
	"golang.org/x/sys/unix"
)

// CacheMounts is told which cache mounts steps use, and has what they were elsewhere. It is safe for concurrent use.
type CacheMounts interface {
	// Restore gives a mount without files, whose directory is dir, what it was elsewhere, by way of the directory tmp, and reports whether it
	// has files now. The error is that of ctx.
	Restore(ctx context.Context, id cachemount.Identity, dir, tmp string) (bool, error)
	// Used says that a step uses the mount whose directory is dir, and holds its lock.
	Used(id cachemount.Identity, dir string)
}

// identity returns which cache a mount is.
func (m *mounting) identity(spec llb.Mount) cachemount.Identity {
	id := cachemount.Identity{ID: spec.CacheID, Mode: spec.Mode, UID: spec.UID, GID: spec.GID}
	if spec.Input > 0 {
		id.From = m.in[spec.Input].Content().String()
	}
	return id
}

// cacheID is the name of a cache mount's directory in mounts/.
func (m *mounting) cacheID(spec llb.Mount) string { return m.identity(spec).Key() }

// lockCaches locks the caches of the step's mounts, each once and in the order of their names: so a step does not wait for itself, and
// no two steps wait for each other. If the mounts of one cache do not agree on how it is shared, the strictest of them decides.
func (m *mounting) lockCaches() error {
	sharing := map[string]llb.Sharing{}
	for _, spec := range m.op.Mounts {
		if spec.Type != llb.MountCache {
			continue
		}
		if id := m.cacheID(spec); strictness(spec.Sharing) >= strictness(sharing[id]) {
			sharing[id] = spec.Sharing
		}
	}
	m.caches = map[string]string{}
	for _, id := range slices.Sorted(maps.Keys(sharing)) {
		if m.fresh {
			if err := m.x.emptied.Once(m.ctx, filepath.Join(m.x.Root, rootdir.Mounts, id), m.x.Tmp); err != nil {
				return err
			}
		}
		dir, l, err := m.lockCache(id, sharing[id])
		if err != nil {
			return err
		}
		m.closers = append(m.closers, func() { l.Release() })
		m.caches[id] = dir
	}
	return nil
}

func strictness(s llb.Sharing) int {
	return slices.Index([]llb.Sharing{llb.SharingLocked, llb.SharingPrivate}, s)
}

// cache mounts a directory that lasts from build to build: mounts/<id>/fs in kiln's root.
func (m *mounting) cache(spec llb.Mount) error {
	id := m.identity(spec)
	dir := m.caches[id.Key()]
	if err := m.fill(dir, spec); err != nil {
		return err
	}
	cachemount.Describe(dir, id)
	if m.x.CacheMounts != nil {
		m.x.CacheMounts.Used(id, dir)
	}
	f, err := os.OpenFile(filepath.Join(dir, cachemount.Files), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	spec.Source = cmp.Or(spec.Source, "/")
	if err := m.belowMapped(f, spec); err != nil {
		return err
	}
	m.mounts[len(m.mounts)-1].Shared = true
	return nil
}

// lockCache locks and returns the directory of a cache. A private cache that is in use is replaced by the next free one of
// the same id.
func (m *mounting) lockCache(id string, sharing llb.Sharing) (string, *lock.Lock, error) {
	parent := filepath.Join(m.x.Root, rootdir.Mounts)
	for n := 0; ; n++ {
		dir := filepath.Join(parent, id)
		if n > 0 {
			dir = fmt.Sprintf("%s-%d", dir, n)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", nil, err
		}
		file := filepath.Join(dir, cachemount.Lock)
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

// fill makes the cache's directory, with what it was elsewhere or starts from, unless it is there. A cache without files counts as one that
// is not there if something is to be had for it.
func (m *mounting) fill(dir string, spec llb.Mount) error {
	l, err := lock.Acquire(m.ctx, filepath.Join(dir, cachemount.Filling), false)
	if err != nil {
		return err
	}
	defer l.Release()
	if restored, err := m.restore(dir, spec); restored || err != nil {
		return err
	}
	target := filepath.Join(dir, cachemount.Files)
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

// restore gives a cache without files what it was elsewhere, and reports whether it has files now.
func (m *mounting) restore(dir string, spec llb.Mount) (bool, error) {
	if m.x.CacheMounts == nil || m.fresh {
		return false, nil
	}
	empty, err := cachemount.Empty(dir)
	if err != nil || !empty {
		return !empty, err
	}
	return m.x.CacheMounts.Restore(m.ctx, m.identity(spec), dir, m.x.Tmp)
}
