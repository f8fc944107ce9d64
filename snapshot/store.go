// Package snapshot stores the layers of a root directory. A layer is its manifest. It has up to two carriers, each of which can
// be made from the other: its files, in a directory that an overlay can use, and its blob, a tar in the image store. The package
// does not know what made a layer, nor how a process runs in one.
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

// Layers is one job's view of the layers: a layer that it has opened is not pruned by any process until Close. *Job implements it
// for the layers of a root directory, and package snapshottest defines what every implementation must do. It is safe for
// concurrent use.
//
// The error for a layer that does not exist is fs.ErrNotExist, and for a damaged one layer.ErrDamaged or a *DamagedError.
//
// Making a layer is not part of the interface: its source has the bytes in a form of its own, such as an upper directory or a
// stream of entries, and each implementation accepts those that it can.
type Layers interface {
	// Manifest returns the manifest of a layer, which is valid until Close. It reads no files and writes nothing.
	Manifest(ctx context.Context, id layer.ID) (*layer.Manifest, error)
	// Open checks that the Files and Blob of a layer are available, which Manifest does not.
	Open(ctx context.Context, id layer.ID) error
	// Files returns the files of a layer, which are valid until Close. If they do not exist they are made from the blob.
	Files(ctx context.Context, id layer.ID) (layer.Files, error)
	// Blob returns the blob of a layer in an encoding. If it does not exist it is made.
	Blob(ctx context.Context, id layer.ID, f blob.Encoding) (blob.Blob, error)
	// Close releases the layers. Their manifests and files must not be used afterwards.
	Close() error
}

// Config configures a Store.
type Config struct {
	// Root is the root directory. Tmp is a directory on the same file system that only this process uses.
	Root, Tmp string
	// NS is the user namespace of the process.
	NS userns.Namespace
	// Limit limits the archives that Unpack and Index read; the zero value is layer.DefaultLimit.
	Limit layer.Limit
	// Blobs are the blobs of the root directory.
	Blobs blob.Store
}

// Store stores the layers of a root directory:
//
//	layers/<id>/fs                the layer's files; the name differs for forms other than Whole: see Form
//	layers/<id>/manifest          its entries
//	layers/<id>/blob.<encoding>   the blob made of the layer in an encoding: see package blob
//	layers/<id>/unsynced          the host's boot ID when the layer was made; removed once the layer is known to be on disk
//	entries/<id>                  the manifest of an image's layer of which nothing else was needed yet: see Job.Index
//	ids                           the mapping of user and group IDs of a user namespace other than the initial one
//
// A layer appears there complete, by one rename. Its manifest never changes; carriers may be added and removed. A Store is safe
// for concurrent use, and any number of processes may use the same directory.
type Store struct {
	limit layer.Limit
	dir   string // layers/
	tmp   string
	boot  string // boot ID of the host
	fs    *dir.FS
	blobs blob.Store

	mu   sync.Mutex
	open map[layer.ID]*opened

	checking once.Group[layer.ID, struct{}] // see check
	filling  once.Group[layer.ID, struct{}] // see fill
	blobbing once.Group[blobKey, blob.Blob] // see Job.Blob

	removing chan struct{} // semaphore for concurrent removals
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

// TryOverlay returns the reason why root file systems are copies, or nil if they are overlays.
func (s *Store) TryOverlay() error { return s.fs.TryOverlay() }

// Close waits until all removals have finished. No job may be open, and the store must not be used afterwards.
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

// throwAway removes a directory in the background, since a disk that discards freed blocks takes milliseconds. It blocks while as
// many removals are running as there are processors, so that the disk does not fill up with garbage. If the process ends before,
// or the directory cannot be removed, it is removed or reported together with the directory tmp.
func (s *Store) throwAway(dir string) {
	s.removing <- struct{}{}
	go func() {
		defer func() { <-s.removing }()
		_ = dirtree.Remove(dir)
	}()
}

// Path returns the directory of a layer, whether or not it exists.
func (s *Store) Path(id layer.ID) string { return filepath.Join(s.dir, string(id)) }

// IndexPath returns the path of the manifest that Index stores for a layer, whether or not it exists.
func (s *Store) IndexPath(id layer.ID) string {
	return filepath.Join(filepath.Dir(s.dir), rootdir.Entries, string(id))
}

func (s *Store) fsDir(id layer.ID, f Form, base layer.ID) string {
	return filepath.Join(s.Path(id), nameOf(f, base))
}

func (s *Store) manifestPath(id layer.ID) string { return filepath.Join(s.Path(id), "manifest") }

// IDs returns the IDs of all layers, including damaged ones.
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

// Base returns the base of a delta, which is pruned after the delta, or "" for other layers.
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

// setNote atomically writes a file in the directory of a layer.
func (s *Store) setNote(id layer.ID, name string, data []byte) error {
	if err := atomicfile.WriteBytes(filepath.Join(s.Path(id), name), s.tmp, data); err != nil {
		return fmt.Errorf("write a note of layer %s: %w", id, err)
	}
	return nil
}
