// Package snapshot keeps the layers of a root directory. A layer is its manifest; it has up to two carriers, each of which can be made of
// the other: its files, in a directory that an overlay can use, and its blob, a tar in the image store. The package does not know what
// made a layer, nor how a process runs in one.
package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/once"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// Layers is one job's view of the layers: what it has opened stays, and is not pruned by anybody, until Close. *Job implements it for the
// layers of a root directory, and package snapshottest says what each implementation does. It is safe for concurrent use.
//
// The error of a layer that does not exist is fs.ErrNotExist, that of one that is damaged layer.ErrDamaged or a *DamagedError.
//
// How a layer is made is not part of it: what makes one has the bytes in a form of its own, as an upper directory or a stream of entries,
// and each implementation takes those that it can.
type Layers interface {
	// Manifest returns the manifest of a layer, which is valid until Close. It reads no files and writes nothing.
	Manifest(ctx context.Context, id layer.ID) (*layer.Manifest, error)
	// Open makes sure that a layer exists in such a form that Files and Blob can be had, which Manifest does not.
	Open(ctx context.Context, id layer.ID) error
	// Files returns the files of a layer, which are valid until Close. It makes them from the blob if there are none.
	Files(ctx context.Context, id layer.ID) (layer.Files, error)
	// Blob returns the blob of a layer in a form. It is made if there is none.
	Blob(ctx context.Context, id layer.ID, f blob.Encoding) (blob.Blob, error)
	// Close lets the layers go. Manifests and files must not be used any more.
	Close() error
}

// Config is what a Store works with.
type Config struct {
	// Root is the root directory, and Tmp a directory of this process's own on the same file system.
	Root, Tmp string
	// NS is the user namespace of the process.
	NS userns.Namespace
	// Limit bounds what Unpack and Index read; the zero value is layer.DefaultLimit.
	Limit layer.Limit
	// Blobs are the blobs of the root directory.
	Blobs blob.Store
}

// Store is the layers of a root directory:
//
//	layers/<id>/fs            the layer's files; the name says more for other forms than Whole: see Form
//	layers/<id>/manifest      its entries
//	layers/<id>/blob.<encoding>   the blob that the layer became in an encoding: see package blob
//	layers/<id>/unsynced      there until the layer is known to be on disk: the boot of the machine that it was made in
//	entries/<id>              the manifest of an image's layer of which nothing else was needed yet: see Job.Index
//	ids                       the user and group ids that owners of files have outside, where that is another user namespace
//
// A layer appears there complete, by one rename. Its manifest never changes; carriers may come and go. A Store is safe for concurrent use,
// and any number of processes have one of the same directory.
type Store struct {
	limit layer.Limit
	dir   string // layers/
	tmp   string
	boot  string // of the machine
	fs    *dir.FS
	blobs blob.Store

	mu   sync.Mutex
	open map[layer.ID]*opened

	checking once.Group[layer.ID, struct{}] // see check
	filling  once.Group[layer.ID, struct{}] // see fill
	blobbing once.Group[blobKey, blob.Blob] // see Job.Blob

	removing chan struct{} // holds one for each removal that is under way
}

// Open opens the store of a root directory.
func Open(c Config) (*Store, error) {
	s, err := open(c)
	if err != nil {
		return nil, fmt.Errorf("open the layer store: %w", err)
	}
	return s, nil
}

func open(c Config) (*Store, error) {
	s := &Store{
		limit: c.Limit, dir: filepath.Join(c.Root, rootdir.Layers), tmp: c.Tmp, blobs: c.Blobs, open: map[layer.ID]*opened{},
		removing: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	if err := s.checkIDs(filepath.Join(c.Root, rootdir.IDs), c.NS); err != nil {
		return nil, err
	}
	for _, name := range []string{s.dir, s.IndexPath("")} {
		if err := os.MkdirAll(name, 0o700); err != nil {
			return nil, err
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	s.boot = string(boot)
	s.fs, err = dir.NewFS(c.Tmp, c.NS)
	return s, err
}

// TryOverlay returns why roots are copies and not overlays; nil where they are overlays.
func (s *Store) TryOverlay() error { return s.fs.TryOverlay() }

// Close waits until what was thrown away is gone. No job may be open, and the store must not be used any more.
func (s *Store) Close() error {
	for range cap(s.removing) {
		s.removing <- struct{}{}
	}
	for range cap(s.removing) {
		<-s.removing
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.open); n > 0 {
		return fmt.Errorf("BUG: %d layers are open when their store is closed", n)
	}
	return nil
}

// throwAway removes a directory while the caller goes on: a disk that discards what is freed takes milliseconds for it. It waits when as
// many removals are under way as there are processors, so that the disk does not fill up with what is of no use. What is left when the
// process ends, or cannot be removed, goes or is reported with the directory tmp.
func (s *Store) throwAway(dir string) {
	s.removing <- struct{}{}
	go func() {
		defer func() { <-s.removing }()
		_ = dirtree.Remove(dir)
	}()
}

// Path returns the directory of a layer, whether it exists or not.
func (s *Store) Path(id layer.ID) string { return filepath.Join(s.dir, string(id)) }

// IndexPath returns where the entries that Index keeps of a layer are, whether they exist or not.
func (s *Store) IndexPath(id layer.ID) string {
	return filepath.Join(filepath.Dir(s.dir), rootdir.Entries, string(id))
}

func (s *Store) fsDir(id layer.ID, f Form, base layer.ID) string {
	return filepath.Join(s.Path(id), nameOf(f, base))
}

func (s *Store) manifestPath(id layer.ID) string { return filepath.Join(s.Path(id), "manifest") }

// IDs returns the ids of the layers that exist, sound or not.
func (s *Store) IDs() ([]layer.ID, error) {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list the layers: %w", err)
	}
	var ids []layer.ID
	for _, name := range names {
		if id := layer.ID(name.Name()); id.Valid() {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Base returns the base of a delta, which is pruned after it; "" for other layers.
func (s *Store) Base(id layer.ID) layer.ID {
	if !id.Valid() {
		return ""
	}
	f, base, err := formOf(s.Path(id))
	if err != nil || !f.is().base {
		return ""
	}
	return base
}

// setNote writes a file into the directory of a layer, as a whole.
func (s *Store) setNote(id layer.ID, name string, data []byte) error {
	if err := atomicfile.WriteBytes(filepath.Join(s.Path(id), name), s.tmp, data); err != nil {
		return fmt.Errorf("keep a note of layer %s: %w", id, err)
	}
	return nil
}
