package caching

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/once"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/solver"
)

// Export is a cache that a build publishes to.
type Export struct {
	Repository remote.Repository
	Tag        string
	Form       remote.Form
	// All exports the layers of every step, and not only those that are in the result.
	All bool
	// Encoding is how layers are written as blobs.
	Encoding blob.Encoding
	Limit    pack.Limit
	// Key signs what this machine has made; nil for none.
	Key *signing.PrivateKey
	// Mounts are the cache mounts that are exported.
	Mounts MountSelection
	// Required makes it a failure of the build if the cache cannot be published; else that is a warning.
	Required bool
}

// packing is how many layers are made into blobs at once, and sending how many are sent: so many that the latency of the last requests of a
// build does not grow with the number of its layers. Of their bytes bytesAtOnce are sent at once, where a larger blob counts as weighty.
const (
	packing     = 2
	sending     = 128
	weighty     = 16 << 20
	bytesAtOnce = 8 * weighty
)

// Exporter publishes what a build used. It is an events.Sink, and sends the blobs of a step that has ended while others run.
type Exporter struct {
	*Caches
	inImage map[llb.Digest]bool

	ctx     context.Context
	cancel  context.CancelFunc
	working sync.WaitGroup
	// interrupted says that the build was, so that only what is there already is published.
	interrupted bool

	packing chan struct{}       // is held by what makes blobs
	line    *semaphore.Weighted // is held by bytes that are sent
	writers []*remote.Writer    // of each export
	begun   []sync.Once         // of each export, when something is found that it may lack
	making  once.Group[exported, *made]
	sending once.Group[exported, struct{}]

	mu   sync.Mutex
	keys map[solver.Key]bool // of steps that have ended; true for those whose layers are in the result
	made map[exported]*made
}

// exported is a layer for one of the exports. With base it is one of an image, of which the export gets what is in it.
type exported struct {
	export int
	id     layer.ID
	base   bool
}

// made is what an export gets for a layer.
type made struct {
	layer pack.Layer
	base  pack.Base
	said  bool // base is what an import has said
	blobs []ocispec.Descriptor
	// open is nil for what the export has already, and keeps.
	open func(context.Context, ocispec.Descriptor) (io.ReadCloser, error)
	sent bool
}

func newExporter(c *Caches, inImage map[llb.Digest]bool) *Exporter {
	x := &Exporter{
		Caches: c, inImage: inImage, packing: make(chan struct{}, packing), line: semaphore.NewWeighted(bytesAtOnce),
		begun: make([]sync.Once, len(c.exports)), keys: map[solver.Key]bool{}, made: map[exported]*made{},
	}
	for _, e := range c.exports {
		w := remote.NewWriter(e.Repository, e.Tag)
		w.Form = e.Form
		x.writers = append(x.writers, w)
	}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	return x
}

// ended returns what an event says of a step that has ended well, and has a key; false for every other event.
func ended(e events.Event) (done events.Finished, ok bool) {
	done, ok = e.Body.(events.Finished)
	return done, ok && done.Key != "" && done.Error == "" && !done.Canceled
}

// Event implements events.Sink.
func (x *Exporter) Event(e events.Event) {
	done, ok := ended(e)
	if !ok {
		return
	}
	key, err := solver.ParseKey(done.Key)
	if err != nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.keys[key] = x.keys[key] || x.inImage[e.Vertex]
	for i, export := range x.exports {
		if !export.All && !x.keys[key] {
			continue
		}
		for _, out := range done.Outputs {
			id := layer.ID(out.Layer)
			if out.Content == "" {
				continue
			}
			x.working.Go(func() {
				seen, _ := x.cache.imports.Published(x.ctx, export.Repository.String(), export.Tag)
				if !x.there(x.ctx, i, id) {
					x.begin(i, seen)
					_ = x.send(x.ctx, exported{export: i, id: id}) // a failure shows again when the cache is published
					x.sendBases(x.ctx, i)
				}
			})
		}
	}
}

// begin reads what an export holds, beside the build; seen is what an import has read there, or nil.
func (x *Exporter) begin(export int, seen *remote.Head) {
	x.begun[export].Do(func() {
		if seen != nil {
			x.writers[export].Knows(seen)
		}
		x.working.Go(func() { x.writers[export].Prepare(x.ctx) })
	})
}

// there reports whether an export has a layer, because the build has imported it from there.
func (x *Exporter) there(ctx context.Context, export int, id layer.ID) bool {
	l, ok := x.imported(ctx, id)
	if l.Image {
		return true // no record of it is exported
	}
	e := x.exports[export]
	return ok && x.cache.imports.From(id, e.Repository.String(), e.Tag)
}

// layer makes what an export gets for a layer, once.
func (x *Exporter) layer(ctx context.Context, of exported) (*made, error) {
	return x.making.Do(ctx, of, func(ctx context.Context) (*made, error) {
		x.mu.Lock()
		m := x.made[of]
		x.mu.Unlock()
		if m != nil {
			return m, nil
		}
		select {
		case x.packing <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		makeIt := x.makeLayer
		if of.base {
			makeIt = x.makeBase
		}
		m, err := makeIt(ctx, x.exports[of.export], of.id)
		<-x.packing
		if err == nil {
			x.mu.Lock()
			x.made[of] = m
			x.mu.Unlock()
		}
		return m, err
	})
}

func (x *Exporter) makeLayer(ctx context.Context, e Export, id layer.ID) (*made, error) {
	l, ok := x.imported(ctx, id)
	there := ok && x.cache.imports.From(id, e.Repository.String(), e.Tag)
	if ok && (there && e.Key == nil || x.config.Layers.Open(ctx, id) != nil) {
		m := &made{layer: l}
		if _, ok := e.Repository.(remote.Keeper); ok {
			m.blobs = l.Descriptors()
		}
		if !there {
			m.blobs = l.Descriptors()
			m.open = func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
				return x.cache.imports.Open(ctx, id, d)
			}
		}
		return m, nil
	}
	files, err := x.config.Layers.Manifest(ctx, id)
	if err != nil {
		return nil, err
	}
	l = pack.Layer{ID: id, Content: files.Content, Created: files.Created, Opaque: files.HidesBelow()}
	tarball, err := x.Blob(ctx, id, e.Encoding)
	if err != nil {
		return nil, err
	}
	members, err := x.members(tarball)
	if err != nil {
		return nil, err
	}
	l.Blobs = map[string]pack.Blob{e.Encoding.String(): {Desc: tarball.Desc, DiffID: tarball.DiffID, Members: members}}
	if l.Manifest, err = x.pack(ctx, files); err != nil {
		return nil, err
	}
	if e.Key != nil {
		if err := l.Sign(e.Key); err != nil {
			return nil, err
		}
	}
	return &made{layer: l, blobs: l.Descriptors(), open: func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		if !ok || x.config.Store.Has(d) {
			return x.config.Store.Open(d)
		}
		return x.cache.imports.Open(ctx, id, d)
	}}, nil
}

// members puts the table of a blob's members into the store; the result has no digest if there is none.
func (x *Exporter) members(b blob.Blob) (ocispec.Descriptor, error) {
	members, err := blob.Store{CAS: x.config.Store}.Members(b)
	table := pack.EncodeMembers(members)
	if err != nil || table == nil {
		return ocispec.Descriptor{}, err
	}
	return x.config.Store.Put(pack.MembersType, table)
}

// send sends the manifest and the blob of a layer to an export, once.
func (x *Exporter) send(ctx context.Context, of exported) error {
	m, err := x.layer(ctx, of)
	if err != nil {
		return err
	}
	_, err = x.sending.Do(ctx, of, func(ctx context.Context) (struct{}, error) {
		x.mu.Lock()
		sent := m.sent
		x.mu.Unlock()
		if sent {
			return struct{}{}, nil
		}
		g, gctx := errgroup.WithContext(ctx)
		for _, d := range m.blobs {
			g.Go(func() error { return x.put(gctx, x.exports[of.export].Repository, m, d) })
		}
		err := g.Wait()
		x.mu.Lock()
		defer x.mu.Unlock()
		m.sent = err == nil
		return struct{}{}, err
	})
	return err
}

func (x *Exporter) put(ctx context.Context, r remote.Repository, m *made, d ocispec.Descriptor) error {
	weight := min(max(d.Size, 1), weighty)
	if err := x.line.Acquire(ctx, weight); err != nil {
		return context.Cause(ctx)
	}
	defer x.line.Release(weight)
	if m.open == nil {
		if err := r.(remote.Keeper).Keep(ctx, d); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil // whoever needs it finds that it is gone, and makes it again
	}
	return r.Put(ctx, d, func() (io.ReadCloser, error) { return m.open(ctx, d) })
}

// pack puts the compressed manifest of a layer into the store.
func (x *Exporter) pack(ctx context.Context, m *layer.Manifest) (ocispec.Descriptor, error) {
	w, err := x.config.Store.Create(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer w.Close()
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, err := m.WriteTo(z); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := z.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := w.Commit("", -1)
	desc.MediaType = pack.ManifestType
	return desc, err
}

// publishAll publishes the records of the steps that have ended, once their blobs are sent. What goes wrong with a cache that is not
// Required is a warning.
func (x *Exporter) publishAll(ctx context.Context) error {
	failed := make([]error, len(x.exports))
	var all sync.WaitGroup
	for i, e := range x.exports {
		all.Go(func() {
			task := x.config.Events.Task(llb.Place{}, "exporting cache to "+e.Repository.String())
			err := x.publish(events.With(ctx, task), i)
			switch {
			case ctx.Err() != nil:
				err = context.Cause(ctx)
				failed[i] = err
			case err != nil && e.Required:
				failed[i] = fmt.Errorf("export the cache to %s: %w", e.Repository, err)
			case err != nil:
				x.config.Events.Warn(fmt.Sprintf("the cache was not exported to %s: %v", e.Repository, err))
				err = nil
			}
			task.Done(err)
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(failed...)
}

// Close ends what is being sent.
func (x *Exporter) Close() {
	x.cancel()
	x.working.Wait()
}

func (x *Exporter) publish(ctx context.Context, export int) error {
	e := x.exports[export]
	own, ids, err := x.records(ctx, e)
	if err != nil {
		return err
	}
	bases, err := x.addBases(ctx, export, own)
	if err != nil {
		return err
	}
	seen, _ := x.cache.imports.Published(ctx, e.Repository.String(), e.Tag)
	warn := func() {}
	if x.mounts != nil && !x.interrupted {
		if seen, warn, err = x.mounts.export(ctx, e, seen, own); err != nil {
			return err
		}
	}
	if seen != nil && seen.Pack.Has(own, remote.Slack) {
		warn()
		return nil
	}
	if seen != nil {
		x.writers[export].Knows(seen)
	}
	ctx, cancel := context.WithCancel(ctx)
	sends, sctx := errgroup.WithContext(ctx)
	sends.SetLimit(sending)
	defer func() {
		cancel()
		_ = sends.Wait() // whoever needed it has waited
	}()
	// The records need what blobs are called, and so go beside them.
	var mu sync.Mutex
	making, mctx := errgroup.WithContext(ctx)
	for _, id := range ids {
		making.Go(func() error {
			m, err := x.layer(mctx, exported{export: export, id: id})
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			own.AddLayer(m.layer)
			return nil
		})
		sends.Go(func() error { return x.send(sctx, exported{export: export, id: id}) })
	}
	for _, of := range bases {
		sends.Go(func() error { return x.send(sctx, of) })
	}
	if err := making.Wait(); err != nil {
		return err
	}
	_, err = x.writers[export].Publish(ctx, own, e.Limit, func(context.Context) error { return sends.Wait() })
	if err == nil {
		warn()
	}
	return err
}

// isOfImage reports whether a layer was found in the inline cache of an image.
func (x *Exporter) isOfImage(m solver.Made) bool {
	_, ok := x.ofImage(layer.ID(m.ID))
	return ok
}

// exists reports whether a layer can be had. That of a step which is only known cannot: see package solver.
func (x *Exporter) exists(ctx context.Context, id layer.ID) bool {
	_, ok := x.imported(ctx, id)
	return ok || x.config.Layers.Open(ctx, id) == nil
}

// records returns the records of all steps, and the layers that an export gets of them.
func (x *Exporter) records(ctx context.Context, e Export) (*pack.Pack, []layer.ID, error) {
	x.mu.Lock()
	keys := maps.Clone(x.keys)
	x.mu.Unlock()
	own := &pack.Pack{}
	unsent := 0
	var ids []layer.ID
	for key, inImage := range keys {
		whole := e.All || inImage
		r, ok, err := x.record(ctx, key, e.Key, whole)
		if err != nil {
			return nil, nil, err
		}
		if !ok {
			if _, inImage, _ := x.cache.imports.Record(ctx, key); inImage {
				unsent++
			}
			continue
		}
		own.AddRecord(key, r)
		if !whole {
			continue
		}
		for _, m := range r.Outputs {
			id := layer.ID(m.ID)
			if m.Content != (solver.Content{}) && !slices.Contains(ids, id) && x.exists(ctx, id) {
				ids = append(ids, id)
			}
		}
	}
	if unsent > 0 {
		x.config.Events.Warn(fmt.Sprintf("the cache %s does not get what was found in the cache of an image: steps of this build: %d",
			e.Repository, unsent))
	}
	x.cache.mu.Lock()
	defer x.cache.mu.Unlock()
	for from, t := range x.cache.shortcuts {
		if _, ok := own.Records[t.Key]; !ok {
			continue
		}
		if t.own && e.Key != nil {
			if err := t.Sign(e.Key, from); err != nil {
				return nil, nil, err
			}
		}
		own.AddShortcut(from, t.Shortcut)
	}
	if len(own.Records) > 0 {
		for _, text := range x.Documents(pack.MaxDocument) {
			own.AddDocument(pack.Document{Text: string(text), Used: time.Now().Truncate(time.Second)})
		}
	}
	return own, ids, ctx.Err()
}

// record returns the record of a step that has ended, or what is known by it if it is not to be whole; false if there is none any more, or
// only in an image, which does not say what its key was computed from. One that this machine has made is signed with the key. One of an
// import keeps the signatures that it has: whether it is true is not known here.
func (x *Exporter) record(ctx context.Context, key solver.Key, sign *signing.PrivateKey, whole bool) (r pack.Record, ok bool, err error) {
	local, err := x.cache.Cache.Get(key)
	switch {
	case err == nil:
		r, ok = pack.Record{Record: *local, Version: solver.KeyVersion}, true
	case errors.As(err, new(*solver.Miss)):
		r, ok, err = x.cache.imports.Record(ctx, key)
		ok = ok && (solver.KeyOf(r.Inputs) == key || r.Known && !slices.ContainsFunc(r.Outputs, x.isOfImage))
	}
	if !whole && (local != nil || len(r.Signatures) == 0) { // others' signatures are of all of it
		r = r.OnlyKnown()
	}
	if local != nil && err == nil && sign != nil {
		err = r.Sign(sign, key)
	}
	r.Used = time.Now().Truncate(time.Second)
	return r, ok, err
}
