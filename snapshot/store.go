// Package snapshot keeps committed layers on disk, as lower directories of overlays with a manifest each, and reads root
// file systems from them. It does not know what made a layer, nor how a process runs in one.
package snapshot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// Store is the layers/ directory of kiln's root:
//
//	layers/<id>/fs         the layer as an overlay's lower directory
//	layers/<id>/manifest   its entries
//	entries/<id>           the entries of an image's layer of which nothing else was needed yet: see Index
//	ids                    the user and group ids that owners of files have outside, where that is another user namespace
//	layers/<id>/bare       there if the layer was made where roots are copies: fs is then no lower directory of an overlay
//	layers/<id>/over       there if fs has only what is different from another layer, whose id it holds
//	layers/<id>/packed     there instead of fs if nobody was expected to need the files: they are in the layer's blob
//	layers/<id>/unsynced   there until the layer is known to be on disk: the boot of the machine that it was made in
//
// A layer appears there complete, by one rename, and is never changed. It is safe for concurrent use, also by several
// processes.
type Store struct {
	// Limit bounds what Unpack and Index read. It is set before they are used, or left as it is.
	Limit layer.Limit
	// Blob returns the blob of a packed layer and keeps it from being removed while this process lives; false if it is not
	// there: then the layer is not there either. It is set as Limit is.
	Blob func(id string) (Blob, bool)
	// CheckBlobs reads the blobs that a layer became, and removes those that are damaged. It is set as Limit is.
	CheckBlobs func(id string)
	// Context is that of the process: its end ends what the store does for all who wait for it, as unpacking layers. It is set as Limit is.
	Context context.Context

	dir  string // layers/
	tmp  string // a directory of this process's own on the same file system
	fs   *dir.FS
	boot string

	unpacking sync.Mutex // the files of a packed layer are being written

	removing chan struct{} // holds one for each removal that is under way

	mu        sync.Mutex
	held      map[string]*lock.Lock // of every layer of manifests: see package lease
	unsynced  map[string]bool       // layers that have the note
	manifests map[string]*layer.Manifest
	indexes   map[string]*layer.Manifest
	opened    map[string]*dir.Files
	earlier   map[string]string
	files     map[string]string // where the files of a layer are: see unpacked
}

// Open opens the store in the directory root, with tmp, on the same file system, for what is unfinished. ns is the user namespace of the
// process.
func Open(root, tmp string, ns userns.Namespace) (*Store, error) {
	s := &Store{
		Context: context.Background(), dir: filepath.Join(root, rootdir.Layers), tmp: tmp, held: map[string]*lock.Lock{}, unsynced: map[string]bool{},
		manifests: map[string]*layer.Manifest{}, indexes: map[string]*layer.Manifest{}, opened: map[string]*dir.Files{}, earlier: map[string]string{},
		files: map[string]string{}, removing: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	if err := s.checkIDs(filepath.Join(root, rootdir.IDs), ns); err != nil {
		return nil, fmt.Errorf("open the layer store: %w", err)
	}
	for _, dir := range []string{s.dir, s.indexPath("")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open the layer store: %w", err)
		}
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open the layer store: %w", err)
	}
	s.boot = string(boot)
	if s.fs, err = dir.NewFS(tmp, ns); err != nil {
		return nil, fmt.Errorf("open the layer store: %w", err)
	}
	return s, nil
}

func (s *Store) fsDir(id string) string { return filepath.Join(s.dir, id, "fs") }

// Has reports whether a layer with a sound manifest is there. If it is, no other process prunes it before this one ends.
func (s *Store) Has(id string) bool {
	_, err := s.Manifest(id)
	return err == nil
}

func (s *Store) indexPath(id string) string {
	return filepath.Join(filepath.Dir(s.dir), rootdir.Entries, id)
}

// HasEntries reports whether a Tree of the layer can be had, with or without its files.
func (s *Store) HasEntries(id string) bool {
	_, err := s.entries(id)
	return err == nil
}

// Listing is Manifest also for a layer that was only indexed, of which no files are there: see Index.
func (s *Store) Listing(id string) (*layer.Manifest, error) { return s.entries(id) }

// entries returns the manifest of a layer that is there, or that was indexed.
func (s *Store) entries(id string) (*layer.Manifest, error) {
	m, err := s.Manifest(id)
	if err == nil || !validID(id) {
		return m, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := s.indexes[id]; ok {
		return m, nil
	}
	index, indexErr := layer.OpenManifest(s.indexPath(id))
	if indexErr != nil {
		return nil, err
	}
	s.indexes[id] = index
	lease.Used(s.indexPath(id), nil)
	return index, nil
}

// Manifest returns a layer's manifest, which stays open for the life of the store, and holds the layer as long. The error of a
// layer that is not there is fs.ErrNotExist; that of one that is damaged, layer.ErrDamaged.
func (s *Store) Manifest(id string) (*layer.Manifest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.manifest(id)
}

// manifest is Manifest with s.mu held.
func (s *Store) manifest(id string) (_ *layer.Manifest, err error) {
	if m, ok := s.manifests[id]; ok {
		return m, nil
	}
	if !validID(id) {
		return nil, fmt.Errorf("layer id %q: %w", id, fs.ErrNotExist)
	}
	l, err := lease.Take(filepath.Join(s.dir, id))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = l.Release() // nothing was written
		}
	}()
	m, err := layer.OpenManifest(filepath.Join(s.dir, id, "manifest"))
	if err != nil {
		return nil, err
	}
	if err := s.survived(id, m); err != nil {
		m.Close()
		return nil, err
	}
	if _, bare := os.Lstat(filepath.Join(s.dir, id, bareNote)); bare == nil && s.fs.TryOverlay() == nil {
		m.Close()
		return nil, fmt.Errorf("layer %s was made where overlayfs could not be used: %w", id, layer.ErrDamaged)
	}
	if s.isPacked(id) {
		if _, ok := s.blob(id); !ok {
			m.Close()
			return nil, fmt.Errorf("the blob of layer %s: %w", id, fs.ErrNotExist)
		}
	}
	if err := s.holdBase(id, m); err != nil {
		m.Close()
		return nil, err
	}
	s.manifests[id] = m
	if old := s.held[id]; old != nil {
		_ = old.Release() // that of a damaged layer which was replaced
	}
	s.held[id] = l
	return m, nil
}

// Release lets go of the layers that this process relied on, and waits for what is being thrown away. The store must not be used any more.
func (s *Store) Release() error {
	for range cap(s.removing) {
		s.removing <- struct{}{}
	}
	for range cap(s.removing) {
		<-s.removing
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, l := range s.held {
		err = errors.Join(err, l.Release())
	}
	clear(s.held)
	return err
}

// filesOf returns the files of a layer with this manifest, which is not packed. They stay open for the life of the store.
func (s *Store) filesOf(id string, m *layer.Manifest) (*dir.Files, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openFiles(id, m)
}

// openFiles is filesOf with s.mu held.
func (s *Store) openFiles(id string, m *layer.Manifest) (*dir.Files, error) {
	if f, ok := s.opened[id]; ok {
		return f, nil
	}
	var own map[string]bool
	var base *dir.Files
	if baseID := s.baseOf(id, m); baseID != "" {
		below, err := s.manifest(baseID)
		if err != nil {
			return nil, err
		}
		own = dir.Differing(m, below)
		if base, err = s.openFiles(baseID, below); err != nil {
			return nil, err
		}
	}
	f, err := s.fs.OpenFiles(id, s.fsDir(id), own, base)
	if err == nil {
		s.opened[id] = f
	}
	return f, err
}

func validID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == 32
}

// SetEarlier keeps, for the life of the store, what the step that made a layer had made when it ran before: most of it may be
// the same.
func (s *Store) SetEarlier(id, earlier string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != earlier {
		s.earlier[id] = earlier
	}
}

// Earlier returns what SetEarlier kept; "" for nothing.
func (s *Store) Earlier(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.earlier[id]
}

// Note returns what SetNote kept of a layer under a name; the error is fs.ErrNotExist for nothing.
func (s *Store) Note(id, name string) ([]byte, error) {
	if !validID(id) {
		return nil, fmt.Errorf("layer id %q: %w", id, fs.ErrNotExist)
	}
	return os.ReadFile(filepath.Join(s.dir, id, name))
}

// SetNote keeps a few bytes about a layer beside it, under a name that is none of "fs", "manifest", "unsynced", "packed", "over" and
// "bare", replacing what it kept before. A crash of the machine may damage them, so they have to say themselves whether they are whole.
func (s *Store) SetNote(id, name string, data []byte) error {
	if err := atomicfile.WriteBytes(filepath.Join(s.dir, id, name), s.tmp, data); err != nil {
		return fmt.Errorf("keep a note of layer %s: %w", id, err)
	}
	return nil
}
