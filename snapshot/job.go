package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/snapshot/roots"
)

// Job is the use of the layers of a root directory by one build or other command. It implements Layers, and creates layers, trees
// and root file systems.
type Job struct {
	store *Store
	blobs blob.Store // holds the blobs that the job uses

	mu      sync.Mutex
	held    map[layer.ID]*opened
	all     []*opened // to be released by Close
	earlier map[layer.ID]layer.ID
	closed  bool
}

var _ Layers = (*Job)(nil)

// Job begins a job. The caller must call Close.
func (s *Store) Job() *Job {
	return &Job{store: s, blobs: s.blobs.Job(), held: map[layer.ID]*opened{}, earlier: map[layer.ID]layer.ID{}}
}

// Close implements Layers. If the host has little unwritten data, it also makes the job's layers durable.
func (j *Job) Close() error { return j.close(syncLimit) }

func (j *Job) close(limit int64) error {
	j.mu.Lock()
	all := j.all
	j.all, j.closed = nil, true
	clear(j.held)
	j.mu.Unlock()
	var fresh []layer.ID
	for _, o := range all {
		if _, boot, _, gone := j.store.state(o); gone == nil && boot == j.store.boot && !slices.Contains(fresh, o.id) {
			fresh = append(fresh, o.id)
		}
	}
	err := errors.Join(j.store.sync(fresh, limit), j.blobs.CAS.Release())
	for _, o := range all {
		err = errors.Join(err, j.store.release(o))
	}
	return err
}

// Limit returns the limits on archives.
func (j *Job) Limit() layer.Limit { return j.store.limit }

// open opens a layer until the end of the job.
func (j *Job) open(id layer.ID) (*opened, error) {
	j.mu.Lock()
	o := j.held[id]
	j.mu.Unlock()
	var gone error
	if o != nil {
		if _, _, _, gone = j.store.state(o); gone == nil {
			return o, nil
		}
	}
	o, err := j.store.acquire(id)
	if gone != nil && errors.Is(err, fs.ErrNotExist) {
		err = gone
	}
	if err != nil {
		return nil, err
	}
	return o, j.hold(o)
}

// hold keeps an opened layer until the end of the job.
func (j *Job) hold(o *opened) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return errors.Join(errors.New("BUG: a layer is opened for a closed job"), j.store.release(o))
	}
	j.held[o.id] = o
	j.all = append(j.all, o)
	return nil
}

// Manifest implements Layers.
func (j *Job) Manifest(ctx context.Context, id layer.ID) (*layer.Manifest, error) {
	if err := ctxio.Ended(ctx); err != nil {
		return nil, err
	}
	o, err := j.open(id)
	if err != nil {
		return nil, err
	}
	return o.manifest, nil
}

// Open implements Layers.
func (j *Job) Open(ctx context.Context, id layer.ID) error {
	_, err := j.carried(ctx, id)
	return err
}

// maxTries is how often a layer may be replaced by another process while it is opened or committed.
const maxTries = 100

// carried opens a layer that has carriers, and verifies that they are sound.
func (j *Job) carried(ctx context.Context, id layer.ID) (*opened, error) {
	s := j.store
	for range maxTries {
		if err := ctxio.Ended(ctx); err != nil {
			return nil, err
		}
		o, err := j.open(id)
		if err != nil {
			return nil, err
		}
		form, _, sound, gone := s.state(o)
		if form == EntriesOnly {
			// It may have been unpacked since.
			again, err := s.openCarried(id)
			if err != nil {
				return nil, o.absent
			}
			s.forget(o, o.absent)
			if err := s.close(again); err != nil {
				return nil, err
			}
			continue
		}
		if sound && gone == nil {
			return o, nil
		}
		_, err = s.checking.Do(ctx, id, func(ctx context.Context) (struct{}, error) {
			o, err := s.acquire(id) // the waiting jobs may end before the check
			if err != nil {
				return struct{}{}, err
			}
			defer s.release(o)
			return struct{}{}, s.check(ctx, o)
		})
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("layer %s is repeatedly replaced by another process", id)
}

// Files implements Layers.
func (j *Job) Files(ctx context.Context, id layer.ID) (layer.Files, error) {
	o, err := j.filled(ctx, id)
	if err != nil {
		return nil, err
	}
	return files{o.files, j.store}, nil
}

// filled opens a layer and its files.
func (j *Job) filled(ctx context.Context, id layer.ID) (*opened, error) {
	s := j.store
	for range maxTries {
		o, err := j.carried(ctx, id)
		if err != nil {
			return nil, err
		}
		if s.hasFiles(o) {
			return o, nil
		}
		_, err = s.filling.Do(ctx, id, func(ctx context.Context) (struct{}, error) {
			o, err := s.acquire(id)
			if err != nil {
				return struct{}{}, err
			}
			defer s.release(o)
			return struct{}{}, s.fill(ctx, o)
		})
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("layer %s is repeatedly replaced by another process", id)
}

func (s *Store) hasFiles(o *opened) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return o.files != nil
}

// blobKey identifies a blob being made.
type blobKey struct {
	id   layer.ID
	form string
}

// Blob implements Layers.
func (j *Job) Blob(ctx context.Context, id layer.ID, f blob.Encoding) (blob.Blob, error) {
	s := j.store
	if _, err := j.carried(ctx, id); err != nil {
		return blob.Blob{}, err
	}
	for range maxTries {
		if have, ok := j.blobs.Find(s.Path(id), f); ok {
			return have, nil
		}
		made, err := s.blobbing.Do(ctx, blobKey{id, f.String()}, func(ctx context.Context) (blob.Blob, error) {
			own := s.Job() // j may end before this does
			own.SetEarlier(id, j.Earlier(id))
			made, err := own.makeBlob(ctx, id, f)
			return made, errors.Join(err, own.close(-1))
		})
		if err != nil {
			return blob.Blob{}, fmt.Errorf("write the blob of layer %s: %w", id, err)
		}
		if j.blobs.CAS.Has(made.Desc) { // else it was pruned just now
			return made, nil
		}
	}
	return blob.Blob{}, fmt.Errorf("the blob of layer %s is repeatedly removed by another process", id)
}

// makeBlob makes the blob of a layer, from an uncompressed blob or from the files.
func (j *Job) makeBlob(ctx context.Context, id layer.ID, f blob.Encoding) (blob.Blob, error) {
	s := j.store
	if have, ok := j.blobs.Find(s.Path(id), f); ok {
		return have, nil // another process has made it just now
	}
	old := j.blobs.Earlier(s.Path(j.Earlier(id)), f)
	if plain, ok := j.blobs.Find(s.Path(id), f.Plain()); ok {
		defer old.Close()
		return j.blobs.Compress(ctx, plain.Desc, f.Compression, old)
	}
	o, err := j.filled(ctx, id)
	if err != nil {
		old.Close()
		return blob.Blob{}, err
	}
	m, err := j.blobs.Begin(ctx, string(id), f.Compression, old)
	if err != nil {
		return blob.Blob{}, err
	}
	defer m.Close()
	if err := f.WriteTar(m, layer.TarEntries(o.manifest, files{o.files, s})); err != nil {
		return blob.Blob{}, err
	}
	made, err := m.Commit()
	if err != nil {
		return blob.Blob{}, err
	}
	return made, s.setNote(id, blob.NoteName(f), made.Note())
}

// BeginBlob begins the blob of a layer that will be committed as id. The caller writes the layer's tar to it, and passes the
// result of its Commit to Pending.Pack.
func (j *Job) BeginBlob(ctx context.Context, id layer.ID, f blob.Encoding) (*blob.Making, error) {
	return j.blobs.Begin(ctx, string(id), f.Compression, j.blobs.Earlier(j.store.Path(j.Earlier(id)), f))
}

// SetEarlier records the layer that the step that makes the layer id made when it last ran: most of it may be unchanged.
func (j *Job) SetEarlier(id, earlier layer.ID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if id != earlier && earlier != "" {
		j.earlier[id] = earlier
	}
}

// Earlier returns the layer recorded by SetEarlier, or "".
func (j *Job) Earlier(id layer.ID) layer.ID {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.earlier[id]
}

// Stack returns the root file system made of the layers ids, lowest first. Its files can be opened until ctx ends, except those
// of layers that were only indexed.
func (j *Job) Stack(ctx context.Context, ids []layer.ID) (*layer.Stack, error) {
	var parts []layer.Part
	for _, id := range ids {
		m, err := j.Manifest(ctx, id)
		if err != nil {
			return nil, err
		}
		parts = append(parts, layer.Part{ID: id, Manifest: m, Files: j.filesOnce(ctx, id)})
	}
	return layer.NewStack(parts), nil
}

// filesOnce returns a function that opens the files of a layer once, rather than for each file that is opened.
func (j *Job) filesOnce(ctx context.Context, id layer.ID) func() (layer.Files, error) {
	var mu sync.Mutex
	var have layer.Files
	return func() (layer.Files, error) {
		mu.Lock()
		defer mu.Unlock()
		if have != nil {
			return have, nil
		}
		files, err := j.Files(ctx, id)
		if err == nil {
			have = files
		}
		return files, err
	}
}

// Mount mounts the root file system made of the layers ids, lowest first, with the IDs of files mapped unless idmap is nil: see
// roots.Mount. Without a pending layer it is read-only. Otherwise changes are written to the pending layer, and CommitChanges
// reads them.
func (j *Job) Mount(ctx context.Context, ids []layer.ID, up *Pending, idmap *mount.IDMap) (*roots.Root, error) {
	lower, err := j.lower(ctx, ids)
	if err != nil {
		return nil, err
	}
	tree, err := j.Stack(ctx, ids)
	if err != nil {
		return nil, err
	}
	var upper *roots.Upper
	if up != nil {
		upper = &roots.Upper{Dir: up.Dir(), Root: up.fs, Beside: up.dir}
	}
	return roots.Mount(ctx, j.store.fs, lower, tree, upper, idmap)
}

// Export writes a whole file tree into the existing empty directory name, with all attributes.
func (j *Job) Export(ctx context.Context, tree layer.Tree, name string) error {
	return roots.Export(ctx, j.store.fs, tree, name)
}

// MaxLayers is the maximum number of non-empty layers in a root file system: the number of directories that overlayfs stacks,
// less the empty one on top of a read-only root.
const MaxLayers = roots.MaxLower

// TooManyLayersError is returned when mounting a root file system of more than MaxLayers layers.
type TooManyLayersError struct{ Layers int }

func (e *TooManyLayersError) Error() string {
	return fmt.Sprintf("the root file system has %d layers, and overlayfs stacks at most %d: combine instructions, "+
		"or start a new stage that copies the files (COPY --from=STAGE / /)", e.Layers, MaxLayers)
}

// CheckLayers returns a *TooManyLayersError if a root file system of n different non-empty layers cannot be mounted.
func CheckLayers(n int) error {
	if n > MaxLayers {
		return &TooManyLayersError{Layers: n}
	}
	return nil
}

// lower returns the directories of the root file system made of the layers ids, uppermost first.
func (j *Job) lower(ctx context.Context, ids []layer.ID) ([]string, error) {
	var dirs []string
	seen := map[layer.ID]bool{}
	for _, id := range slices.Backward(ids) {
		// A second occurrence of a layer has no effect, and the kernel does not stack a directory twice.
		if seen[id] {
			continue
		}
		seen[id] = true
		o, err := j.carried(ctx, id)
		if err != nil {
			return nil, err
		}
		if o.manifest.Entries == 0 {
			continue
		}
		form, _, _, _ := j.store.state(o)
		if !form.is().files {
			if o, err = j.filled(ctx, id); err != nil {
				return nil, err
			}
			form, _, _, _ = j.store.state(o)
		}
		dirs = append(dirs, j.store.fsOf(o, form))
		// The same applies to a base.
		if o.base != nil && !seen[o.base.id] {
			seen[o.base.id] = true
			dirs = append(dirs, j.store.fsDir(o.base.id, Whole, ""))
		}
	}
	return dirs, CheckLayers(len(dirs))
}

// missing reports whether an error means that the layer does not exist or is damaged, rather than that this is unknown.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, layer.ErrDamaged)
}
