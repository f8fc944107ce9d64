package caching

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/solver"
)

// Export is a cache that a build publishes to.
type Export struct {
	Repository remote.Repository
	Tag        string
	// All exports every step, and not only those whose layers are in the result.
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

// uploads is how many blobs of a cache are sent at once, and packing how many are made.
const (
	uploads = 5
	packing = 2
)

// Exporter publishes what a build used. It is an events.Sink, and sends the blobs of a step that has ended while others run.
type Exporter struct {
	*Caches
	inImage map[llb.Digest]bool

	ctx     context.Context
	cancel  context.CancelFunc
	working sync.WaitGroup
	room    chan struct{}
	// interrupted says that the build was, so that only what is there already is published.
	interrupted bool

	mu   sync.Mutex
	keys map[solver.Key]bool // of steps that have ended; true for those whose layers are in the result
	sent map[sending]*sent
}

// sending is a layer on its way to one of the exports.
type sending struct {
	export int
	id     layer.ID
}

type sent struct {
	once  sync.Once
	layer pack.Layer
	err   error
}

func newExporter(c *Caches, inImage map[llb.Digest]bool) *Exporter {
	x := &Exporter{Caches: c, inImage: inImage, room: make(chan struct{}, packing), keys: map[solver.Key]bool{}, sent: map[sending]*sent{}}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	return x
}

// Event implements events.Sink.
func (x *Exporter) Event(e events.Event) {
	done, ok := e.Body.(events.Finished)
	if !ok || done.Key == "" || done.Error != "" || done.Canceled {
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
			if out.Content == "" || x.there(i, id) {
				continue
			}
			x.working.Go(func() {
				select {
				case x.room <- struct{}{}:
				case <-x.ctx.Done():
					return
				}
				defer func() { <-x.room }()
				_, _ = x.send(x.ctx, i, id) // a failure shows again when the cache is published
			})
		}
	}
}

// there reports whether an export has a layer, because the build has imported it from there.
func (x *Exporter) there(export int, id layer.ID) bool {
	e := x.exports[export]
	return x.cache.imports.From(id, e.Repository.String(), e.Tag)
}

// send sends the manifest and the blob of a layer to an export, once.
func (x *Exporter) send(ctx context.Context, export int, id layer.ID) (pack.Layer, error) {
	x.mu.Lock()
	s := x.sent[sending{export, id}]
	if s == nil {
		s = &sent{}
		x.sent[sending{export, id}] = s
	}
	x.mu.Unlock()
	s.once.Do(func() { s.layer, s.err = x.sendLayer(ctx, x.exports[export], id) })
	return s.layer, s.err
}

func (x *Exporter) sendLayer(ctx context.Context, e Export, id layer.ID) (pack.Layer, error) {
	if l, ok := x.cache.imports.Layer(id); ok && x.config.Layers.Open(ctx, id) != nil {
		return l, x.copy(ctx, e, l)
	}
	m, err := x.config.Layers.Manifest(ctx, id)
	if err != nil {
		return pack.Layer{}, err
	}
	l := pack.Layer{ID: id, Content: m.Content, Created: m.Created, Opaque: !m.Plain && m.Entries > 0}
	made, err := x.config.Layers.Blob(ctx, id, e.Encoding)
	if err != nil {
		return l, err
	}
	l.Blobs = map[string]pack.Blob{e.Encoding.String(): {Desc: made.Desc, DiffID: made.DiffID}}
	if l.Manifest, err = x.pack(ctx, m); err != nil {
		return l, err
	}
	for _, d := range []ocispec.Descriptor{l.Manifest, made.Desc} {
		if err := e.Repository.Put(ctx, d, func() (io.ReadCloser, error) { return x.config.Store.Open(d) }); err != nil {
			return l, err
		}
	}
	if e.Key != nil {
		err = l.Sign(e.Key)
	}
	return l, err
}

// copy sends what another cache has of a layer.
func (x *Exporter) copy(ctx context.Context, e Export, l pack.Layer) error {
	if x.cache.imports.From(l.ID, e.Repository.String(), e.Tag) {
		return nil
	}
	all := []ocispec.Descriptor{l.Manifest}
	for _, b := range l.Blobs {
		all = append(all, b.Desc)
	}
	for _, d := range all {
		err := e.Repository.Put(ctx, d, func() (io.ReadCloser, error) { return x.cache.imports.Open(ctx, l.ID, d) })
		if err != nil {
			return err
		}
	}
	return nil
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
	var failed error
	for i, e := range x.exports {
		task := x.config.Events.Task(llb.Place{}, "exporting cache to "+e.Repository.String())
		err := x.publish(events.With(ctx, task), i)
		switch {
		case ctx.Err() != nil:
			task.Done(context.Cause(ctx))
			return context.Cause(ctx)
		case err != nil && e.Required:
			failed = errors.Join(failed, fmt.Errorf("export the cache to %s: %w", e.Repository, err))
			task.Done(err)
			continue
		case err != nil:
			x.config.Events.Warn(fmt.Sprintf("the cache was not exported to %s: %v", e.Repository, err))
		}
		task.Done(nil)
	}
	return failed
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
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(uploads)
	for _, id := range ids {
		g.Go(func() error {
			l, err := x.send(gctx, export, id)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			own.AddLayer(l)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if _, err = remote.Publish(ctx, e.Repository, e.Tag, own, e.Limit, seen); err == nil {
		warn()
	}
	return err
}

// records returns the records that an export gets, and the layers that they name.
func (x *Exporter) records(ctx context.Context, e Export) (*pack.Pack, []layer.ID, error) {
	x.mu.Lock()
	var keys []solver.Key
	for key, inImage := range x.keys {
		if e.All || inImage {
			keys = append(keys, key)
		}
	}
	x.mu.Unlock()
	own := &pack.Pack{}
	var ids []layer.ID
	for _, key := range keys {
		r, ok, err := x.record(ctx, key, e.Key)
		if err != nil {
			return nil, nil, err
		}
		if !ok {
			continue // it was pruned meanwhile
		}
		own.AddRecord(key, r)
		for _, m := range r.Outputs {
			id := layer.ID(m.ID)
			if m.Content != (solver.Content{}) && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
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
	return own, ids, ctx.Err()
}

// record returns the record of a step that has ended; false if there is none any more. One that this machine has made is signed with the
// key. One of an import keeps the signatures that it has: whether it is true is not known here.
func (x *Exporter) record(ctx context.Context, key solver.Key, sign *signing.PrivateKey) (r pack.Record, ok bool, err error) {
	local, err := x.cache.Cache.Get(key)
	switch {
	case err == nil:
		r, ok = pack.Record{Record: *local, Version: solver.KeyVersion}, true
		if sign != nil {
			err = r.Sign(sign, key)
		}
	case errors.As(err, new(*solver.Miss)):
		r, ok, err = x.cache.imports.Record(ctx, key)
	}
	r.Used = time.Now().Truncate(time.Second)
	return r, ok, err
}
