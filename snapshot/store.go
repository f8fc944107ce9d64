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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/internal/userns"
	"golang.org/x/sys/unix"
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
	mark string // what the names of an overlay's own attributes begin with
	ns   userns.Namespace
	boot string

	doubtful atomic.Bool // overlays may not work here: see Mount
	trying   sync.Once
	refusal  error // why they do not; set by trying

	unpacking sync.Mutex // the files of a packed layer are being written

	noFlags    atomic.Bool // the file system has nothing that chattr(1) could set
	givenOnce  sync.Once
	givenNames []string // set by givenOnce: see given

	removing chan struct{} // holds one for each removal that is under way

	mu        sync.Mutex
	held      map[string]*lock.Lock // of every layer of manifests: see package lease
	unsynced  map[string]bool       // layers that have the note
	manifests map[string]*layer.Manifest
	indexes   map[string]*layer.Manifest
	roots     map[string]*layerFiles
	earlier   map[string]string
	files     map[string]string // where the files of a layer are: see unpacked
}

// Open opens the store in the directory root, with tmp, on the same file system, for what is unfinished. ns is the user
// namespace that the process is in: in one that is not the first, overlay keeps its own attributes under "user." names
// (kernel, Documentation/filesystems/overlayfs.rst), and a disk cannot hold all that a layer does.
func Open(root, tmp string, ns userns.Namespace) (*Store, error) {
	s := &Store{Context: context.Background(), dir: filepath.Join(root, "layers"), tmp: tmp, mark: "trusted.overlay.", ns: ns, held: map[string]*lock.Lock{}, unsynced: map[string]bool{}, manifests: map[string]*layer.Manifest{}, indexes: map[string]*layer.Manifest{}, roots: map[string]*layerFiles{}, earlier: map[string]string{}, files: map[string]string{}, removing: make(chan struct{}, runtime.GOMAXPROCS(0))}
	if ns.Nested {
		s.mark = "user.overlay."
	}
	if err := s.checkIDs(filepath.Join(root, "ids")); err != nil {
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
	unusual, err := s.unusual()
	if err != nil {
		return nil, fmt.Errorf("open the layer store: %w", err)
	}
	s.doubtful.Store(unusual)
	return s, nil
}

func (s *Store) fsDir(id string) string { return filepath.Join(s.dir, id, "fs") }

// Has reports whether a layer with a sound manifest is there. If it is, no other process prunes it before this one ends.
func (s *Store) Has(id string) bool {
	_, err := s.Manifest(id)
	return err == nil
}

func (s *Store) indexPath(id string) string {
	return filepath.Join(filepath.Dir(s.dir), "entries", id)
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
	if _, bare := os.Lstat(filepath.Join(s.dir, id, bareNote)); bare == nil && !s.doubt() {
		m.Close()
		return nil, fmt.Errorf("layer %s was made where overlayfs could not be used: %w", id, layer.ErrDamaged)
	}
	if s.isPacked(id) {
		if _, ok := s.blob(id); !ok {
			m.Close()
			return nil, fmt.Errorf("the blob of layer %s: %w", id, fs.ErrNotExist)
		}
	}
	if err := s.holdUnder(id, m); err != nil {
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
func (s *Store) filesOf(id string, m *layer.Manifest) (*layerFiles, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.roots[id]; ok {
		return f, nil
	}
	f := &layerFiles{id: id}
	if under := s.under(id, m); under != "" {
		below, err := s.manifest(under)
		if err != nil {
			return nil, err
		}
		f.own, f.under = differing(m, below), &layerFiles{id: under}
		if f.under.root, err = rootfs.Open(s.fsDir(under)); err != nil {
			return nil, err
		}
	}
	var err error
	if f.root, err = rootfs.Open(s.fsDir(id)); err != nil {
		return nil, err
	}
	s.roots[id] = f
	return f, nil
}

func validID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == 32
}

// Pending is a layer that is being made.
type Pending struct {
	// Rewrite has CommitChanges copy what a step has left: for where others have the privilege to make the root's file system writable
	// again after CommitChanges has sealed it, and may have been given a descriptor of it.
	Rewrite bool

	store *Store
	dir   string
	fs    *rootfs.Root
	// copied is set if the files are a copy of a root, in which a step changes some.
	copied *copied
	// over is the layer that this one is made over; "" for none.
	over string
}

// New begins a layer: an empty directory. Close must be called; after a Commit it does nothing.
func (s *Store) New() (*Pending, error) {
	dir, err := os.MkdirTemp(s.tmp, "layer-")
	if err != nil {
		return nil, fmt.Errorf("begin a layer: %w", err)
	}
	p := &Pending{store: s, dir: dir}
	// The note comes first, so that no state of the directory that the disk may have after a crash is one without it.
	if err = os.WriteFile(filepath.Join(dir, unsyncedNote), []byte(s.boot), 0o600); err == nil {
		err = os.Mkdir(p.Dir(), 0o755)
	}
	if err == nil {
		if err = os.Chmod(p.Dir(), 0o755); err == nil {
			p.fs, err = rootfs.Open(p.Dir())
		}
	}
	if err != nil {
		_ = dirtree.Remove(dir)
		return nil, fmt.Errorf("begin a layer: %w", err)
	}
	return p, nil
}

// Dir returns the directory that the layer's files are in.
func (p *Pending) Dir() string { return filepath.Join(p.dir, "fs") }

// Root returns that directory to resolve paths in.
func (p *Pending) Root() *rootfs.Root { return p.fs }

// WorkDir makes and returns a directory beside it, for an overlay's work.
func (p *Pending) WorkDir() (string, error) {
	dir := filepath.Join(p.dir, "work")
	return dir, os.Mkdir(dir, 0o700)
}

// Close throws the layer away.
func (p *Pending) Close() {
	if p.dir == "" {
		return
	}
	p.fs.Close()
	p.store.throwAway(p.dir)
	p.dir = ""
}

// throwAway removes a directory while the caller goes on: a disk that discards what is freed takes milliseconds for it. It waits when
// as many removals are under way as there are processors, so that the disk does not fill up with what is of no use. What is
// left when the process ends, or cannot be removed, goes or is reported with the directory tmp.
func (s *Store) throwAway(dir string) {
	s.removing <- struct{}{}
	go func() {
		defer func() { <-s.removing }()
		_ = dirtree.Remove(dir)
	}()
}

// Commit puts the layer that b has written here in the store, with a manifest of b's entries. id is "" for
// a layer that is named by its identity: then one of the same identity that is there already is taken instead.
func (p *Pending) Commit(b *Builder, id string) (Committed, error) {
	w, err := p.Manifest()
	if err != nil {
		return Committed{}, err
	}
	if err := b.Entries(until(p.store.Context, w.Add)); err != nil {
		w.Abort()
		return Committed{}, fmt.Errorf("write a layer's manifest: %w", err)
	}
	if p.over != "" {
		w.Over()
	}
	sum, err := w.Close(time.Now())
	if err != nil {
		return Committed{}, fmt.Errorf("write a layer's manifest: %w", err)
	}
	return p.CommitWritten(sum, id)
}

// until returns add until ctx ends, and then its cause.
func until(ctx context.Context, add func(*layer.Entry) error) func(*layer.Entry) error {
	return func(e *layer.Entry) error {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		return add(e)
	}
}

// Manifest begins the layer's manifest, for CommitWritten.
func (p *Pending) Manifest() (*layer.Writer, error) {
	w, err := layer.NewWriter(filepath.Join(p.dir, "manifest"))
	if err != nil {
		return nil, fmt.Errorf("write a layer's manifest: %w", err)
	}
	return w, nil
}

// CommitWritten is Commit of a layer whose manifest has been written, and closed with this summary.
func (p *Pending) CommitWritten(sum layer.Summary, id string) (Committed, error) {
	if id == "" {
		id = hex.EncodeToString(sum.Identity[:])
		if m, err := p.store.Manifest(id); err == nil {
			p.Close()
			return Committed{ID: id, Summary: m.Summary}, nil
		}
	}
	work := p.dir + "-work"
	if err := os.Rename(filepath.Join(p.dir, "work"), work); err == nil {
		p.store.throwAway(work)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Committed{}, fmt.Errorf("take the overlay's work directory from the layer: %w", err)
	}
	if p.over != "" {
		if err := os.WriteFile(filepath.Join(p.dir, overNote), []byte(p.over+"\n"), 0o600); err != nil {
			return Committed{}, fmt.Errorf("commit layer %s: %w", id, err)
		}
	}
	if _, files := os.Lstat(p.Dir()); files == nil && p.store.copies() {
		if err := os.WriteFile(filepath.Join(p.dir, bareNote), nil, 0o600); err != nil {
			return Committed{}, fmt.Errorf("commit layer %s: %w", id, err)
		}
	}
	// The layer is held before it has its name, so that nobody prunes it in between.
	l, err := lock.TryExisting(p.dir, true)
	if err != nil {
		return Committed{}, fmt.Errorf("commit layer %s: %w", id, err)
	}
	defer l.Release()
	target := filepath.Join(p.store.dir, id)
	for try := 1; ; try++ {
		err = unix.Renameat2(unix.AT_FDCWD, p.dir, unix.AT_FDCWD, target, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			if _, damaged := p.store.Manifest(id); damaged != nil {
				if err = ctxio.Ended(p.store.Context); err == nil { // else nobody knows
					err = p.replace(target)
				}
			} else {
				p.Close()
				err = nil
			}
		}
		// It was there a moment ago, and was pruned.
		if !errors.Is(err, unix.ENOENT) || try == maxTries {
			break
		}
	}
	if err != nil {
		return Committed{}, fmt.Errorf("commit layer %s: %w", id, err)
	}
	if p.dir != "" {
		p.fs.Close()
		p.dir = ""
	}
	m, err := p.store.Manifest(id)
	if err != nil {
		return Committed{}, fmt.Errorf("commit layer: %w", err)
	}
	return Committed{ID: id, Summary: m.Summary}, nil
}

// maxTries bounds how often a layer may be there and then not be there when it is committed.
const maxTries = 100

// replace puts the layer in the place of a damaged one.
func (p *Pending) replace(target string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, p.dir, unix.AT_FDCWD, target, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	p.Close() // of what is at its path now
	return nil
}

// Committed is a layer that is in the store.
type Committed struct {
	ID string
	layer.Summary
}

// MaxLayers is the number of layers with entries that a root file system can be mounted of: the number of directories that overlayfs
// stacks, less the empty one on top of a root that is only read.
const MaxLayers = mount.MaxLower - 1

// TooManyLayersError is the error of mounting a root file system of more than MaxLayers layers.
type TooManyLayersError struct{ Layers int }

func (e *TooManyLayersError) Error() string {
	return fmt.Sprintf("the root file system has %d layers, and overlayfs stacks at most %d: combine instructions, or start a new stage that copies the files (COPY --from=STAGE / /)", e.Layers, MaxLayers)
}

// CheckLayers returns a *TooManyLayersError if a root file system of n different layers with entries cannot be mounted.
func CheckLayers(n int) error {
	if n > MaxLayers {
		return &TooManyLayersError{Layers: n}
	}
	return nil
}

// overlay returns the directories of a root file system made of these layers, the lowest first; what is written goes to the pending layer,
// unless that is nil.
func (s *Store) overlay(ids []string, up *Pending) (mount.Overlay, error) {
	o := mount.Overlay{Volatile: true, UserXattr: s.ns.Nested}
	seen := map[string]bool{}
	over := 0 // how many layers have two directories
	var live []string
	for _, id := range slices.Backward(ids) {
		// A layer that lies below itself adds nothing there, and the kernel does not stack a directory twice.
		if seen[id] {
			continue
		}
		seen[id] = true
		m, err := s.Manifest(id)
		if err != nil {
			return o, err
		}
		if m.Entries > 0 {
			live = append(live, id)
		}
		if m.Over {
			over++
		}
	}
	slices.Reverse(live)
	if err := CheckLayers(len(live) + over); err != nil {
		return o, err
	}
	clear(seen)
	for _, id := range slices.Backward(live) {
		id, err := s.unpacked(id)
		if err != nil {
			return o, err
		}
		for id != "" {
			// All that a layer has below itself is hidden, as above.
			if !seen[id] {
				o.Lower = append(o.Lower, s.fsDir(id))
			}
			seen[id] = true
			m, err := s.Manifest(id)
			if err != nil {
				return o, err
			}
			id = s.under(id, m)
		}
	}
	if up == nil {
		return o, nil
	}
	work, err := up.WorkDir()
	if err != nil {
		return o, err
	}
	o.Upper, o.Work = up.Dir(), work
	return o, nil
}

// SetRoot gives the pending layer's own directory the attributes of e, so that it can be the top of a root file system.
func (p *Pending) SetRoot(e layer.Entry) error { return p.store.setRoot(p.fs, e) }

// setRoot gives the directory of root the attributes of e.
func (s *Store) setRoot(root *rootfs.Root, e layer.Entry) error {
	e.Path, e.Opaque = "", false
	d := newDisk(root, s)
	defer d.close()
	if err := d.attributes(&e); err != nil {
		return err
	}
	return d.times(&e)
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
	f, err := os.CreateTemp(s.tmp, "note-")
	if err != nil {
		return fmt.Errorf("keep a note of layer %s: %w", id, err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(s.dir, id, name))
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("keep a note of layer %s: %w", id, err)
	}
	return nil
}
