// Package received keeps the files of directories that clients send, from build to build, so that a client sends only what differs. It does
// not know how they are sent.
//
// What a client sends of one directory is a cache: its files, named by their digests, and lists of what they are called and how the client
// described them, one for each selection that was made of the directory. Names that a client has chosen are only in lists, never on disk.
// Whoever uses a cache holds its lock, shared; files that no list has are removed while nobody else uses it.
package received

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"golang.org/x/sys/unix"
)

// The names in a cache's directory.
const (
	lockName = "lock"
	filesDir = "files"
	listsDir = "lists"
	bootName = "boot"    // the boot in which files and lists were last known to belong together
	workName = "working" // is there while there may be files that no list has
)

// maxLists is how many selections of a directory are remembered.
const maxLists = 8

// bootID is what changes when the host starts. Tests set it.
var bootID = "/proc/sys/kernel/random/boot_id"

// Cache is a cache in use. It is safe for concurrent use until Finish is called.
type Cache struct {
	dir, tmp string
	variant  string
	lock     *lock.Lock
	// own is the list of this selection, and near that of another, the last one that was used; nil for none.
	own, near *layer.Manifest
	// dropped says that there may be files which no list has any more.
	dropped bool
}

// Open opens the cache of a directory of a client, and makes it if there is none. key and variant are 32 hexadecimal digits: key says whose
// directory it is, and variant which selection. root is kiln's root directory, and tmp a directory of this process on the same file system.
func Open(ctx context.Context, root, tmp, key, variant string) (*Cache, error) {
	c := &Cache{dir: filepath.Join(root, rootdir.Received, key), tmp: tmp, variant: variant}
	if err := c.open(ctx); err != nil {
		return nil, fmt.Errorf("open the cache of a client's directory: %w", err)
	}
	return c, nil
}

func (c *Cache) open(ctx context.Context) error {
	for {
		for _, dir := range []string{c.path(filesDir), c.path(listsDir)} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
		}
		var err error
		c.lock, err = lock.Acquire(ctx, c.path(lockName), true)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) { // it was removed just now
			return err
		}
	}
	lease.Used(c.path(lockName), nil)
	err := c.afterBoot(ctx)
	if err == nil {
		err = c.openLists()
	}
	if err != nil {
		return errors.Join(err, c.lock.Release())
	}
	return nil
}

func (c *Cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

func (c *Cache) list(variant string) string { return c.path(listsDir, variant) }

// file returns the path of the file with a digest.
func (c *Cache) file(d layer.Digest) string {
	name := fmt.Sprintf("%x", d)
	return c.path(filesDir, name[:2], name[2:])
}

// openLists opens the list of the selection, and the last one of another.
func (c *Cache) openLists() error {
	lists, err := c.lists()
	if err != nil {
		return err
	}
	for _, name := range lists {
		own := name == c.variant
		if !own && c.near != nil {
			continue
		}
		m, err := layer.OpenManifest(c.list(name))
		switch {
		case errors.Is(err, layer.ErrDamaged):
			c.dropped = true
			if err := os.Remove(c.list(name)); err != nil {
				return err
			}
		case errors.Is(err, fs.ErrNotExist): // another has put one in its place, or removed it
		case err != nil:
			return err
		case own:
			c.own = m
		default:
			c.near = m
		}
	}
	return nil
}

// lists returns the names of the lists, the last used one first.
func (c *Cache) lists() ([]string, error) {
	entries, err := os.ReadDir(c.path(listsDir))
	if err != nil {
		return nil, err
	}
	used := map[string]time.Time{}
	var names []string
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			names = append(names, e.Name())
			used[e.Name()] = info.ModTime()
		}
	}
	slices.SortFunc(names, func(a, b string) int { return used[b].Compare(used[a]) })
	return names, nil
}

// Known is a position in the lists for a series of lookups in the order of layer.Compare. The zero value is the beginning.
type Known struct{ own, near int }

// Digest returns the digest of a file that the client describes as e, and described so when it sent it; false if it has to be sent.
func (c *Cache) Digest(at *Known, e *layer.Entry) (layer.Digest, bool) {
	if d, ok := known(c.own, &at.own, e); ok {
		return d, true
	}
	return known(c.near, &at.near, e)
}

func known(m *layer.Manifest, at *int, e *layer.Entry) (layer.Digest, bool) {
	if m == nil {
		return layer.Digest{}, false
	}
	i, ok := m.FindFrom(*at, e.Path)
	if !ok {
		return layer.Digest{}, false
	}
	// What follows in the client's order mostly follows here.
	for *at = i + 1; *at < m.Entries && m.Type(*at) != layer.File; *at++ {
	}
	old := m.At(i)
	if old.Type != layer.File || old.Clock || old.Size != e.Size || !old.ModTime.Equal(e.ModTime) || old.Mode != e.Mode ||
		old.UID != e.UID || old.GID != e.GID {
		return layer.Digest{}, false
	}
	return old.Digest, true
}

// Finish keeps the entries, which are those of the whole selection in the order of layer.Compare, as its list, and returns them as a tree
// that can be used until Close. The digests of Files are those that Digest and File.Commit returned. A Hardlink is a further name of a
// File. Clock says that a File has to be sent again although it will be described in the same way.
func (c *Cache) Finish(entries []layer.Entry) (*Tree, error) {
	if c.own == nil || !same(c.own, entries) {
		if err := c.write(entries); err != nil {
			return nil, fmt.Errorf("keep the list of a client's directory: %w", err)
		}
	}
	lease.Used(c.list(c.variant), nil)
	if err := c.evict(); err != nil {
		return nil, err
	}
	return &Tree{layer.NewStack([]layer.Part{{Manifest: c.own, Files: func() (layer.Files, error) { return stored{c}, nil }}})}, nil
}

func same(m *layer.Manifest, entries []layer.Entry) bool {
	if m.Entries != len(entries) {
		return false
	}
	for i := range entries {
		if !m.Same(i, &entries[i]) {
			return false
		}
	}
	return true
}

// write makes the list of the selection anew, and opens it.
func (c *Cache) write(entries []layer.Entry) error {
	dir, err := os.MkdirTemp(c.tmp, "received-")
	if err != nil {
		return err
	}
	defer dirtree.Remove(dir) // what stays is removed with tmp
	name := filepath.Join(dir, c.variant)
	w, err := layer.NewWriter(name)
	if err != nil {
		return err
	}
	for i := range entries {
		if err := w.Add(&entries[i]); err != nil {
			w.Abort()
			return err
		}
	}
	if _, err := w.Close(time.Now()); err != nil {
		return err
	}
	// Opened by this name, it stays what it is whatever another puts in its place.
	m, err := layer.OpenManifest(name)
	if err != nil {
		return err
	}
	if err := os.Rename(name, c.list(c.variant)); err != nil {
		return errors.Join(err, m.Close())
	}
	if c.own != nil {
		c.dropped = true
		err = c.own.Close()
	}
	c.own = m
	return err
}

// evict removes the lists that were not used for longest.
func (c *Cache) evict() error {
	names, err := c.lists()
	if err != nil || len(names) <= maxLists {
		return err
	}
	for _, name := range names[maxLists:] {
		if err := os.Remove(c.list(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		c.dropped = true
	}
	return nil
}

// working notes that there will be files which no list has.
func (c *Cache) working() error {
	f, err := os.OpenFile(c.path(workName), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// Close ends the use of the cache and of its tree.
func (c *Cache) Close() error {
	var err error
	for _, m := range []*layer.Manifest{c.own, c.near} {
		if m != nil {
			err = errors.Join(err, m.Close())
		}
	}
	c.own, c.near = nil, nil
	return errors.Join(err, c.lock.Release(), c.tidy())
}

// tidy removes the files that no list has, if there may be any and nobody else uses the cache; else whoever comes later does.
func (c *Cache) tidy() error {
	if _, err := os.Lstat(c.path(workName)); err != nil && !c.dropped {
		return nil
	}
	l, err := lock.TryExisting(c.path(lockName), false)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return c.working()
	}
	if err != nil {
		return nil // it was removed
	}
	defer l.Release()
	if err := c.sweep(); err != nil {
		return err
	}
	if err := os.Remove(c.path(workName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
