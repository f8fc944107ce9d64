package execute

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/klauspost/readahead"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// Image implements plan.Sources: an image's root is its layers as its config names them, and nothing is unpacked for that. The content of
// such a layer is its diff id, which vouches for every byte of it.
func (x *Job) Image(ctx context.Context, op llb.Image) (solver.Ref, error) {
	layers, err := x.Images.Layers(ctx, op)
	if err != nil {
		return solver.Ref{}, err
	}
	task := x.image(ctx, layers)
	var root solver.Ref
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, l := range layers {
		id := l.DiffID.Encoded()
		if _, ok := x.sources[id]; !ok {
			x.sources[id] = source{op, l, task}
		}
		root = root.Push(solver.Layer{ID: id, Content: diffIDContent(l.DiffID)})
	}
	return root, nil
}

// diffIDContent is the content of a layer of an image.
func diffIDContent(d digest.Digest) solver.Content {
	return sha256.Sum256([]byte("diff id " + d.String()))
}

// Entries implements plan.Layers. What a cache says of a layer of an image is enough for it, unless the layer is here, or its files are
// expected to be needed. That is compared with what is in the layer once it is unpacked; until then nothing is made of it but Files whose
// keys say what they have found, so that no record becomes wrong by it.
func (x *Job) Entries(ctx context.Context, r solver.Ref) ([]layer.Part, error) {
	return x.view(ctx, r, true)
}

// View returns the layers of a root file system as Entries does, and never what a cache says of a layer of an image: such a layer that is
// not there is read through for its entries; it is unpacked at once if its files are expected to be needed.
func (x *Job) View(ctx context.Context, r solver.Ref) ([]layer.Part, error) {
	return x.view(ctx, r, false)
}

func (x *Job) view(ctx context.Context, r solver.Ref, asSaid bool) (_ []layer.Part, err error) {
	refs := r.Changes()
	layers := make([]layer.Part, len(refs))
	var said, missing []int
	for i, l := range refs {
		id := layer.ID(l.ID)
		m, err := x.Snapshots.Manifest(ctx, id)
		switch {
		case err == nil:
			err = x.is(l.Layer, m)
		case asSaid && x.isSaid(id):
			said, err = append(said, i), nil
		default:
			missing, err = append(missing, i), nil
		}
		if err != nil {
			return nil, err
		}
		layers[i] = layer.Part{ID: id, Manifest: m}
	}
	if len(missing)+len(said) == 0 {
		return layers, nil
	}
	f := x.fetch(ctx, missing, func(i int) layer.ID { return layer.ID(refs[i].ID) })
	defer func() { f.end(err) }()
	// Manifests that are elsewhere are small: many are fetched at once, so that latency counts little.
	early, ectx := errgroup.WithContext(ctx)
	early.SetLimit(manifestsAtOnce)
	for _, i := range said {
		early.Go(func() (err error) {
			layers[i].Manifest, err = x.claims.Manifest(ectx, layers[i].ID)
			return err
		})
	}
	for _, i := range missing {
		if elsewhere, ok := x.cached(layer.ID(refs[i].ID)); ok {
			early.Go(func() error { return x.importEntries(ectx, elsewhere) })
		}
	}
	if err := early.Wait(); err != nil {
		return layers, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, i := range missing {
		g.Go(func() error {
			if err := x.list(gctx, layer.ID(refs[i].ID)); err != nil {
				return err
			}
			f.done(layer.ID(refs[i].ID))
			m, err := x.manifest(ctx, refs[i].Layer)
			layers[i].Manifest = m
			return err
		})
	}
	return layers, g.Wait()
}

// isSaid reports whether what a cache says of a layer of an image is enough.
func (x *Job) isSaid(id layer.ID) bool {
	x.mu.Lock()
	_, ofImage := x.sources[string(id)]
	demand := x.demands[string(id)]
	x.mu.Unlock()
	return x.claims.Relied(id) || ofImage && (demand == nil || !demand().Files) && x.claims.Has(id)
}

// ImageLayers returns the layers of the images that steps lie on or read, by their diff IDs.
func (x *Job) ImageLayers() []layer.ID {
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []layer.ID
	for id := range x.sources {
		all = append(all, layer.ID(id))
	}
	return all
}

// Hides implements plan.Layers.
func (x *Job) Hides(ctx context.Context, r solver.Ref) ([]bool, error) {
	refs := r.Changes()
	hides := make([]bool, len(refs))
	for i, l := range refs {
		m, err := x.Snapshots.Manifest(ctx, layer.ID(l.ID))
		if err == nil {
			hides[i] = m.HidesBelow()
			continue
		}
		elsewhere, ok := x.cached(layer.ID(l.ID))
		if !ok {
			parts, err := x.View(ctx, r)
			for i, l := range parts {
				hides[i] = l.HidesBelow()
			}
			return hides, err
		}
		hides[i] = elsewhere.Hides
	}
	return hides, nil
}

// manifestsAtOnce bounds how many manifests of layers are fetched at once, each with the memory that zstd needs.
const manifestsAtOnce = 16

func (x *Job) importEntries(ctx context.Context, l CachedLayer) error {
	return x.once(ctx, "entries of "+string(l.ID), func(ctx context.Context) error { return x.Snapshots.ImportEntries(ctx, l.Foreign) })
}

// list makes the entries known of a layer of an image, or of one that is elsewhere. Where its files are going to be needed they are made at
// once, beside those of the other layers.
func (x *Job) list(ctx context.Context, id layer.ID) error {
	x.mu.Lock()
	src, ok := x.sources[string(id)]
	demand := x.demands[string(id)]
	x.mu.Unlock()
	elsewhere, isElsewhere := x.cached(id)
	wanted := demand != nil && demand().Files
	switch {
	case isElsewhere && !wanted:
		return x.importEntries(ctx, elsewhere)
	case !ok && !isElsewhere:
		return fmt.Errorf("layer %s is neither in the store nor of an image of this build", id)
	case wanted:
		return x.materialise(ctx, id, nil)
	}
	return x.once(ctx, "entries of "+string(id), func(ctx context.Context) error {
		return layerError(src, x.readBlob(ctx, src, func(tarball io.Reader) error { return x.Snapshots.Index(ctx, id, tarball) }))
	})
}

// Tree returns the files of a root, of which it makes sure that they are there.
func (x *Job) Tree(ctx context.Context, r solver.Ref) (*layer.Stack, error) {
	ids, err := x.Realise(ctx, r)
	if err != nil {
		return nil, err
	}
	return x.Snapshots.Stack(ctx, ids)
}

// Realise makes sure that every layer of a root is in the snapshot store, unpacking those of images side by side, and
// returns the ids under which they are there, the lowest first. Layers without entries are left out.
func (x *Job) Realise(ctx context.Context, r solver.Ref) (_ []layer.ID, err error) {
	layers := r.Changes()
	ids := make([]layer.ID, len(layers))
	var missing []int
	for i, l := range layers {
		ids[i] = layer.ID(l.ID)
		exists, err := x.has(ctx, ids[i])
		if err != nil {
			return nil, err
		}
		if !exists {
			missing = append(missing, i)
		}
	}
	f := x.fetch(ctx, missing, func(i int) layer.ID { return ids[i] })
	defer func() { f.end(err) }()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, i := range missing {
		g.Go(func() error {
			err := x.materialise(gctx, ids[i], nil)
			if err == nil {
				f.done(ids[i])
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	// A layer that names something in a directory, but not the directory, looks different over different roots.
	for i := range layers {
		m, err := x.manifest(ctx, layers[i].Layer)
		if err != nil {
			return nil, err
		}
		if !m.Implied || i == 0 {
			continue
		}
		id := layer.ID(fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%s as it is over %s", layers[i].ID, layers[i].Below))))
		exists, err := x.has(ctx, id)
		if err == nil && !exists {
			err = x.materialise(ctx, id, &variant{of: layers[i].ID, below: ids[:i]})
		}
		if err != nil {
			return nil, err
		}
		ids[i] = id
	}
	return ids, nil
}

// variant is a layer as it is over the layers below.
type variant struct {
	of    string
	below []layer.ID
}

// has reports whether a layer is in the snapshot store with its carriers. The error says that this could not be found out.
func (x *Job) has(ctx context.Context, id layer.ID) (bool, error) {
	err := x.Snapshots.Open(ctx, id)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, layer.ErrDamaged) {
		return false, nil
	}
	return err == nil, err
}

func (x *Job) materialise(ctx context.Context, id layer.ID, v *variant) error {
	return x.once(ctx, string(id), func(ctx context.Context) error { return x.unpack(ctx, id, v) })
}

// Bring makes sure that a layer is here with its files, if it is elsewhere.
func (x *Job) Bring(ctx context.Context, id layer.ID) error {
	if exists, err := x.has(ctx, id); exists || err != nil {
		return err
	}
	return x.materialise(ctx, id, nil)
}

// once calls f once for all steps of the job that need what the name says.
func (x *Job) once(ctx context.Context, name string, f func(context.Context) error) error {
	_, err := x.ready.Do(ctx, name, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

func (x *Job) unpack(ctx context.Context, id layer.ID, v *variant) error {
	from := string(id)
	if v != nil {
		from = v.of
	}
	x.mu.Lock()
	src, ok := x.sources[from]
	x.mu.Unlock()
	elsewhere, isElsewhere := x.cached(id)
	if !ok && !isElsewhere {
		return fmt.Errorf("layer %s is neither in the store nor of an image of this build", from)
	}
	l, err := lock.Acquire(ctx, filepath.Join(x.Root, rootdir.Locks, "layer-"+string(id)), false)
	if err != nil {
		return err
	}
	defer l.Remove()
	if exists, err := x.has(ctx, id); exists || err != nil {
		return err // another process unpacked it while we waited
	}
	if isElsewhere {
		return x.Snapshots.Import(ctx, elsewhere.Foreign)
	}
	// A mirror may have sent other bytes than asked for, which shows at their end: then another is asked.
	for try := 1; ; try++ {
		err := x.unpackBlob(ctx, id, src, v)
		if _, other := errors.AsType[*cas.MismatchError](err); !other || try == maxTries {
			return layerError(src, err)
		}
	}
}

// maxTries is how often a layer is fetched whose bytes turned out to be others.
const maxTries = 3

// Reading ahead lets the network, the decompression and the writing of files each have a core. Three blocks of 512 KiB on each side
// of the decompression are enough to even out their speeds.
const (
	aheadBlock  = 512 << 10
	aheadBlocks = 3
)

func (x *Job) unpackBlob(ctx context.Context, id layer.ID, src source, v *variant) error {
	var below layer.Tree
	if v != nil {
		var err error
		if below, err = x.Snapshots.Stack(ctx, v.below); err != nil {
			return err
		}
	}
	return x.readBlob(ctx, src, func(tarball io.Reader) error {
		_, err := x.Snapshots.Unpack(ctx, id, tarball, below)
		return err
	})
}

// readBlob gives the uncompressed bytes of a layer's blob to read, which end in io.EOF only if they are what the image says.
func (x *Job) readBlob(ctx context.Context, src source, read func(tarball io.Reader) error) error {
	opened, err := x.Images.Open(events.With(ctx, src.task), src.image, src.layer)
	if err != nil {
		return err
	}
	defer opened.Close()
	extracting := events.Transfer{
		Name: src.layer.Blob.Digest.String(), Phase: events.Extracting, Current: src.layer.Blob.Size, Total: src.layer.Blob.Size,
	}
	blob := &arriving{r: opened, arrived: func() { src.task.Emit(extracting) }}
	ahead, err := readahead.NewReadCloserSize(io.NopCloser(ctxio.Reader(ctx, blob)), aheadBlocks, aheadBlock)
	if err != nil {
		return err
	}
	defer ahead.Close()
	tarball, err := layer.UncompressVerified(ahead, src.layer.DiffID.Encoded())
	if err != nil {
		return err
	}
	defer tarball.Close()
	files := ctxio.ReadCloser(ctx, tarball)
	if src.layer.Windows {
		files = layer.ReadWindowsTar(files)
		defer files.Close()
	}
	if err := read(files); err != nil {
		return err
	}
	extracting.Done = true
	src.task.Emit(extracting)
	return nil
}

func layerError(src source, err error) error {
	if err == nil {
		return nil
	}
	return &solver.ImageError{Image: src.image, Err: fmt.Errorf("layer %s of %s: %w", src.layer.Blob.Digest, src.image.Ref, err)}
}
