package ops

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"slices"
	"sync"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/passwd"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/readahead"
	"golang.org/x/sync/errgroup"
)

// image returns an image's root as its layers are named in its config: nothing is unpacked for that. The content of such a
// layer is its diff id, which vouches for every byte of it.
func (r *Runner) image(ctx context.Context, op llb.Image) (*solver.Chain, error) {
	layers, err := r.Images.Layers(ctx, op)
	if err != nil {
		return nil, err
	}
	var root *solver.Chain
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range layers {
		id := l.DiffID.Encoded()
		if _, ok := r.sources[id]; !ok {
			r.sources[id] = source{op, l}
		}
		root = root.Push(solver.Layer{ID: id, Content: sha256.Sum256([]byte("diff id " + l.DiffID.String()))})
	}
	return root, nil
}

// Realise makes sure that every layer of a root is in the snapshot store, unpacking those of images side by side, and
// returns the ids under which they are there, the lowest first.
func (r *Runner) Realise(ctx context.Context, c *solver.Chain) ([]string, error) {
	layers := c.Layers()
	ids := make([]string, len(layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i, l := range layers {
		ids[i] = l.ID
		if r.Snapshots.Has(l.ID) {
			continue
		}
		g.Go(func() error { return r.materialise(gctx, l.ID, nil) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	// A layer that names something in a directory, but not the directory, looks different over different roots.
	at := c
	chains := make([]*solver.Chain, len(layers))
	for i := len(layers) - 1; i >= 0; i-- {
		chains[i], at = at, at.Parent()
	}
	for i := range layers {
		m, err := r.Snapshots.Manifest(ids[i])
		if err != nil {
			return nil, err
		}
		if !m.Implied || i == 0 {
			continue
		}
		parent := chains[i].Parent().Content()
		id := fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%s over %s", layers[i].ID, parent)))
		if !r.Snapshots.Has(id) {
			if err := r.materialise(ctx, id, &variant{of: layers[i].ID, below: ids[:i]}); err != nil {
				return nil, err
			}
		}
		ids[i] = id
	}
	return ids, nil
}

// variant is a layer as it is over the layers below.
type variant struct {
	of    string
	below []string
}

// materialising is the unpacking of one layer, which everybody in this process waits for.
type materialising struct {
	once sync.Once
	err  error
}

func (r *Runner) materialise(ctx context.Context, id string, v *variant) error {
	r.mu.Lock()
	m := r.ready[id]
	if m == nil {
		m = &materialising{}
		r.ready[id] = m
	}
	r.mu.Unlock()
	m.once.Do(func() {
		m.err = r.unpack(ctx, id, v)
		if m.err != nil {
			// Whoever comes later, perhaps with a context that still lives, tries again.
			r.mu.Lock()
			delete(r.ready, id)
			r.mu.Unlock()
		}
	})
	return m.err
}

func (r *Runner) unpack(ctx context.Context, id string, v *variant) error {
	from := id
	if v != nil {
		from = v.of
	}
	r.mu.Lock()
	src, ok := r.sources[from]
	r.mu.Unlock()
	if !ok {
		return fmt.Errorf("layer %s is neither in the store nor of an image of this build", from)
	}
	l, err := lock.Acquire(ctx, filepath.Join(r.Root, "locks", "layer-"+id), false)
	if err != nil {
		return err
	}
	defer l.Remove()
	if r.Snapshots.Has(id) {
		return nil // another process unpacked it while we waited
	}
	// A mirror may have sent other bytes than asked for, which shows at their end: then another is asked.
	for try := 1; ; try++ {
		err := r.unpackBlob(ctx, id, src, v)
		if _, other := errors.AsType[*cas.MismatchError](err); !other || try == maxTries {
			return layerError(src, err)
		}
	}
}

// maxTries is how often a layer is fetched whose bytes turned out to be others.
const maxTries = 3

// Reading ahead lets the network, the decompression and the writing of files each have a core. The decompression takes as
// long as all else, so its goroutine does nothing but that. Three blocks of 512 KiB on each side are enough to even out their
// speeds.
const (
	aheadBlock  = 512 << 10
	aheadBlocks = 3
)

func (r *Runner) unpackBlob(ctx context.Context, id string, src source, v *variant) error {
	var below layer.Tree
	if v != nil {
		var err error
		if below, err = r.Snapshots.Tree(v.below); err != nil {
			return err
		}
	}
	return r.readBlob(ctx, src, func(tarball io.Reader) error {
		_, err := r.Snapshots.Unpack(ctx, id, tarball, below)
		return err
	})
}

// readBlob gives the uncompressed bytes of a layer's blob to read, which end in io.EOF only if they are what the image says.
func (r *Runner) readBlob(ctx context.Context, src source, read func(tarball io.Reader) error) error {
	blob, err := r.Images.Open(ctx, src.image, src.layer)
	if err != nil {
		return err
	}
	defer blob.Close()
	ahead, err := readahead.NewReadCloserSize(io.NopCloser(ctxio.Reader(ctx, blob)), aheadBlocks, aheadBlock)
	if err != nil {
		return err
	}
	defer ahead.Close()
	plain, err := Uncompress(ahead)
	if err != nil {
		return err
	}
	defer plain.Close()
	tarball, err := readahead.NewReadCloserSize(io.NopCloser(plain), aheadBlocks, aheadBlock)
	if err != nil {
		return err
	}
	defer tarball.Close()
	return read(&diffIDReader{r: ctxio.Reader(ctx, tarball), rest: ahead, hash: sha256.New(), want: src.layer.DiffID.Encoded()})
}

// look returns the tree of a root in which no step of this build runs: layers of images that nobody has unpacked are only
// read through for their entries. Its files cannot be opened, perhaps.
func (r *Runner) look(ctx context.Context, c *solver.Chain) (*snapshot.Tree, error) {
	layers := c.Layers()
	ids := make([]string, len(layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i, l := range layers {
		ids[i] = l.ID
		if r.Snapshots.HasEntries(l.ID) {
			continue
		}
		r.mu.Lock()
		src, ok := r.sources[l.ID]
		r.mu.Unlock()
		if !ok {
			return nil, fmt.Errorf("layer %s is neither in the store nor of an image of this build", l.ID)
		}
		g.Go(func() error {
			return layerError(src, r.readBlob(gctx, src, func(tarball io.Reader) error { return r.Snapshots.Index(gctx, l.ID, tarball) }))
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return r.Snapshots.Tree(ids)
}

// Expect says which vertices the build is for. Images that none of its processes runs in, or mounts, are not unpacked for a
// step that only has to know what is at its destination. What is copied to where nothing needs files becomes a blob by pack at
// once; nil is for outputs that need no such blobs, or files. Where more is needed after all, it is unpacked then.
func (r *Runner) Expect(roots []llb.Output, pack Pack) {
	r.pack, r.inFiles, r.selections = pack, map[llb.Digest]bool{}, map[llb.Digest][]string{}
	unpacked := map[string]bool{}
	seen := map[llb.Digest]bool{}
	var queue []*llb.Vertex
	for _, o := range roots {
		queue = append(queue, o.Vertex)
	}
	for len(queue) > 0 {
		v := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if seen[v.Digest()] {
			continue
		}
		seen[v.Digest()] = true
		for _, in := range v.Inputs() {
			queue = append(queue, in.Vertex)
		}
		r.selects(v)
		for i, in := range v.Inputs() {
			// What a step runs in, mounts, or copies from has to be there in full.
			_, runs := v.Op().(llb.Exec)
			_, merges := v.Op().(llb.Merge)
			if runs || i > 0 && !merges || i == 0 && looksInside(v.Op()) {
				r.needFiles(in)
			}
			if img, ok := bottom(in).Op().(llb.Image); ok && (runs || i > 0) {
				unpacked[img.Digest] = true
			}
		}
	}
	r.unpacked = unpacked
}

// selects notes what a vertex uses of contexts.
func (r *Runner) selects(v *llb.Vertex) {
	note := func(input int, path string) {
		in := v.Inputs()[input]
		if _, local := in.Vertex.Op().(llb.Local); local {
			d := in.Vertex.Digest()
			r.selections[d] = append(r.selections[d], path)
		}
	}
	switch op := v.Op().(type) {
	case llb.File:
		for _, a := range op.Actions {
			if a.Copy == nil {
				continue
			}
			for _, s := range a.Copy.Sources {
				note(s.Input, s.Path)
			}
		}
	case llb.Exec:
		for _, m := range op.Mounts {
			if m.Input > 0 {
				note(m.Input, m.Source)
			}
		}
	}
}

// looksInside reports whether an op opens files of the root that it changes.
func looksInside(op llb.Op) bool {
	file, ok := op.(llb.File)
	return ok && (unpacks(file) || slices.ContainsFunc(file.Actions, func(a llb.Action) bool { return passwd.NeedsFiles(a.Chown()) }))
}

// needFiles notes that something needs the files of an output, and with that those of the layers below.
func (r *Runner) needFiles(o llb.Output) {
	for ok := true; ok && !r.inFiles[o.Vertex.Digest()]; o, ok = o.Base() {
		r.inFiles[o.Vertex.Digest()] = true
		if _, merges := o.Vertex.Op().(llb.Merge); merges {
			for _, linked := range o.Vertex.Inputs()[1:] {
				r.needFiles(linked)
			}
		}
	}
}

// bottom returns the vertex that a root file system begins with.
func bottom(o llb.Output) *llb.Vertex {
	for base, ok := o.Base(); ok; base, ok = o.Base() {
		o = base
	}
	return o.Vertex
}

func layerError(src source, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("layer %s of %s: %w", src.layer.Blob.Digest, src.image.Ref, err)
}

// diffIDReader ends in io.EOF only if its bytes have the diff id, and if the compressed bytes that they came from, rest, are
// read to their end as well. Nobody else reads rest any more once r has ended.
type diffIDReader struct {
	r    io.Reader
	rest io.Reader
	hash hash.Hash
	want string
}

func (d *diffIDReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.hash.Write(p[:n])
	if err != io.EOF {
		return n, err
	}
	// Not by the WriteTo that rest may have: one that has ended returns io.EOF again, and nothing would be compared.
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{d.rest}); err != nil {
		return n, err
	}
	if got := fmt.Sprintf("%x", d.hash.Sum(nil)); got != d.want {
		return n, fmt.Errorf("its uncompressed bytes have digest sha256:%s, and the image's config says sha256:%s", got, d.want)
	}
	return n, io.EOF
}

// Uncompress returns the uncompressed bytes of r, which is gzip, zstd or neither, by what it begins with.
func Uncompress(r io.Reader) (io.ReadCloser, error) {
	buf := bufio.NewReaderSize(r, 64<<10)
	head, err := buf.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		z, err := gzip.NewReader(buf)
		if err != nil {
			return nil, err
		}
		return z, nil
	case len(head) == 4 && string(head) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(buf, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(buf), nil
}

// maxZstdWindow bounds the memory that a zstd stream may ask for: 128 MiB is what zstd itself accepts without --long.
const maxZstdWindow = 128 << 20
