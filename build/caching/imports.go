// Package caching is what a build has to do with caches that travel: it finds steps and layers in those that it imports, fetches bytes only
// when something needs them, and publishes what the build used. It does not know what a step does.
package caching

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/kilnbuild/kiln/cache"
	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/store/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Cache is the cache of one build: the local one and those that it imports. It implements solver.Cache, solver.LastBuild and
// solver.Shortcuts, and execute.Cached.
type Cache struct {
	*cache.Cache
	imports *remote.Imports
	store   *cas.Store
	ctx     context.Context

	mu        sync.Mutex
	shortcuts map[solver.Key]shortcut // of this build
}

// shortcut is one that a build has used.
type shortcut struct {
	pack.Shortcut
	// own says that this build has computed it.
	own bool
}

// NewCache returns the cache of a build that ends with ctx. Blobs that are fetched go to store.
func NewCache(ctx context.Context, local *cache.Cache, imports *remote.Imports, store *cas.Store) *Cache {
	return &Cache{Cache: local, imports: imports, store: store, ctx: ctx, shortcuts: map[solver.Key]shortcut{}}
}

// Get implements solver.Cache. A record that an import has is used by this build alone: it is not put into the local cache, where builds
// would find it that do not trust the import.
func (c *Cache) Get(key solver.Key) (*solver.Record, error) {
	r, err := c.Cache.Get(key)
	if !errors.As(err, new(*solver.Miss)) {
		return r, err
	}
	found, ok, ended := c.imports.Record(c.ctx, key)
	if ended != nil || !ok {
		return nil, errors.Join(ended, err)
	}
	return &found.Record, nil
}

// Shortcut implements solver.Shortcuts.
func (c *Cache) Shortcut(ctx context.Context, from solver.Key) (solver.Key, bool, error) {
	t, ok, err := c.imports.Shortcut(ctx, from)
	if ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.shortcuts[from] = shortcut{Shortcut: t}
	}
	return t.Key, ok, err
}

// SetShortcut implements solver.Shortcuts.
func (c *Cache) SetShortcut(from, to solver.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := shortcut{pack.Shortcut{Key: to}, true}
	if old := c.shortcuts[from]; old.Key == to {
		t.Signatures = old.Signatures
	}
	c.shortcuts[from] = t
}

// Layer implements execute.Cached.
func (c *Cache) Layer(id layer.ID) (execute.CachedLayer, bool) {
	l, ok := c.imports.Layer(id)
	if !ok {
		return execute.CachedLayer{}, false
	}
	b, encoding, ok := c.imports.Blob(id, "")
	if !ok {
		return execute.CachedLayer{}, false
	}
	foreign := snapshot.Foreign{
		ID: id, Content: l.Content,
		Tarball: func(ctx context.Context) (io.ReadCloser, error) { return c.tarball(ctx, id, b) },
		Blob:    blob.Blob{Desc: b.Desc, DiffID: b.DiffID}, Encoding: encoding,
	}
	if !l.Image {
		foreign.Manifest = func(ctx context.Context) (io.ReadCloser, error) { return c.imports.Manifest(ctx, id) }
	}
	return execute.CachedLayer{Hides: l.Opaque, Foreign: foreign}, true
}

// Base implements execute.Cached.
func (c *Cache) Base(id layer.ID) bool {
	_, ok := c.imports.Base(id)
	return ok
}

// BaseManifest implements execute.Cached.
func (c *Cache) BaseManifest(ctx context.Context, id layer.ID) (io.ReadCloser, error) {
	return c.imports.BaseManifest(ctx, id)
}

// tarball opens the tar of a layer, whose blob goes into the store on the way.
func (c *Cache) tarball(ctx context.Context, id layer.ID, b pack.Blob) (io.ReadCloser, error) {
	packed, err := registry.Stream(ctx, fetcher{c.imports, id}, "", b.Desc, c.store)
	if err != nil {
		return nil, err
	}
	source := &ctxio.Source{R: packed}
	plain, err := layer.UncompressVerified(source, b.DiffID.Encoded())
	if err != nil {
		packed.Close()
		return nil, blame(id, source, err)
	}
	return &tarball{id, plain, source, packed}, nil
}

// blame returns why the tar of a layer could not be read: it is a fault of its bytes, unless they could not be read.
func blame(id layer.ID, s *ctxio.Source, err error) error {
	if s.Err != nil {
		return s.Err
	}
	return &snapshot.ForeignError{ID: id, Err: err}
}

type tarball struct {
	id     layer.ID
	plain  io.ReadCloser
	source *ctxio.Source
	packed io.Closer
}

func (t *tarball) Read(p []byte) (int, error) {
	n, err := t.plain.Read(p)
	if err != nil && err != io.EOF {
		err = blame(t.id, t.source, err)
	}
	return n, err
}

func (t *tarball) Close() error { return errors.Join(t.plain.Close(), t.packed.Close()) }

// fetcher is an image.Fetcher of the blobs of a layer, from the cache that has it.
type fetcher struct {
	imports *remote.Imports
	id      layer.ID
}

func (f fetcher) Fetch(ctx context.Context, _ string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	r, err := f.imports.Open(ctx, f.id, desc)
	if err != nil {
		return nil, err
	}
	return images.Downloading(ctx, desc, r), nil
}

// Drop makes an import not have the layer of which err says that it cannot be had, so that the step runs that made it; false if err says
// something else.
func (c *Cache) Drop(err error) bool {
	if gone, ok := errors.AsType[*remote.GoneError](err); ok {
		c.imports.Drop(gone)
		return true
	}
	if foreign, ok := errors.AsType[*snapshot.ForeignError](err); ok {
		c.imports.Drop(&remote.GoneError{Layer: foreign.ID, Cache: c.imports.NameOf(foreign.ID), Err: foreign})
		return true
	}
	return false
}
