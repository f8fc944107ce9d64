package caching

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/cache"
	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config is what Caches are made of.
type Config struct {
	From, To []Spec
	// Later says that further ones may be imported while the build goes on.
	Later  bool
	Client *registry.Client
	// Local is the cache of the root directory, Layers its layers, and Store its blobs.
	Local  *cache.Cache
	Layers *snapshot.Job
	Store  *cas.Store
	Events *events.Stream
	// Root is the root directory, and Tmp a directory of this process on the same file system.
	Root, Tmp string
}

// Caches are all caches of one build. Where it imports and exports none, they are the local one alone, and cost nothing.
type Caches struct {
	// Bring makes sure that a layer is in the local store. Documents returns what describes the images that the build starts from, each
	// document that has at most limit bytes, and Bases the layers of images that steps lie on. All are set before Build.
	Bring     func(ctx context.Context, id layer.ID) error
	Documents func(limit int64) [][]byte
	Bases     func() []layer.ID

	config  Config
	exports []Export
	inline  *inline // nil where the image has no cache
	mu      sync.Mutex
	asked   map[string]bool // by Spec.identity, what is imported
	closers []func() error
	// restored says for each import which cache mounts are restored from it.
	restored map[*remote.Import]MountSelection
	mounts   *Mounts // nil where no cache mount travels

	cancel   context.CancelFunc
	cache    *Cache // nil where nothing is imported or exported
	exporter *Exporter
}

// Open opens the caches of a build, and begins to read those that it imports. The error says what is wrong with a Spec. Close must be
// called.
func Open(c Config) (*Caches, error) {
	all := &Caches{config: c, asked: map[string]bool{}, restored: map[*remote.Import]MountSelection{}}
	if len(c.From) == 0 && len(c.To) == 0 && !c.Later {
		return all, nil
	}
	if err := errors.Join(tooMany("imported", len(c.From)), tooMany("exported", len(c.To))); err != nil {
		return nil, err
	}
	imports, err := all.openImports(c.From)
	if err != nil {
		return nil, errors.Join(err, all.Close())
	}
	for _, s := range c.To {
		if err := all.openExport(s); err != nil {
			return nil, errors.Join(s.wrap(err), all.Close())
		}
	}
	if err := all.openMounts(); err != nil {
		return nil, errors.Join(err, all.Close())
	}
	var ctx context.Context
	ctx, all.cancel = context.WithCancel(context.Background())
	all.cache = NewCache(ctx, c.Local, remote.Begin(ctx, imports, c.Events.Warn), c.Store)
	return all, nil
}

// MaxCaches is how many caches a build imports, and how many it exports. The records of each that is imported are in memory.
const MaxCaches = 32

// tooMany returns an error for more caches than that.
func tooMany(done string, n int) error {
	if n <= MaxCaches {
		return nil
	}
	return fmt.Errorf("%d caches are to be %s, and the limit is %d", n, done, MaxCaches)
}

// Import begins to read further caches, for the steps that are solved from now on, but for those that are read already. The build must be
// one of Config.Later.
func (c *Caches) Import(specs []Spec) error {
	c.mu.Lock()
	var fresh []Spec
	for _, s := range specs {
		if !c.asked[s.identity()] {
			fresh = append(fresh, s)
			c.asked[s.identity()] = true
		}
	}
	n := len(c.asked)
	c.mu.Unlock()
	if err := tooMany("imported", n); err != nil {
		return err
	}
	imports, err := c.openImports(fresh)
	if err != nil {
		return err
	}
	c.cache.imports.Add(imports)
	return nil
}

// Close ends what is being read and sent.
func (c *Caches) Close() error {
	if c.inline != nil {
		c.config.Events.Detach(c.inline)
	}
	if c.exporter != nil {
		c.config.Events.Detach(c.exporter)
		c.exporter.Close()
	}
	if c.cancel != nil {
		c.cancel()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for _, f := range c.closers {
		err = errors.Join(err, f())
	}
	return err
}

// Importing reports whether steps may be found that have never run here.
func (c *Caches) Importing() bool { return c.cache != nil && len(c.cache.imports.All()) > 0 }

// Solver returns the cache for the solver.
func (c *Caches) Solver() solver.Cache {
	if len(c.exports) == 0 && c.inline == nil && !c.Importing() {
		return c.config.Local
	}
	return c.cache
}

// Elsewhere returns the layers that are not in the local store and can be had; nil for none.
func (c *Caches) Elsewhere() execute.Cached {
	if c.cache == nil {
		return nil
	}
	return c.cache
}

// Document is a registry.Known of what the imports have.
func (c *Caches) Document(ctx context.Context, d digest.Digest) []byte {
	if c.cache == nil {
		return nil
	}
	return c.cache.imports.Document(ctx, d)
}

// Created returns when a layer was made.
func (c *Caches) Created(ctx context.Context, id layer.ID) (time.Time, error) {
	if l, ok := c.ofImage(id); ok {
		return l.Created, nil
	}
	m, err := c.config.Layers.Manifest(ctx, id)
	if err == nil {
		return m.Created, nil
	}
	if l, ok := c.imported(ctx, id); ok {
		return l.Created, nil
	}
	return time.Time{}, err
}

// imported returns a layer that an import has, unless the one with the same ID that is here was made at another time: that counts then,
// with the times in its own tar, whether the import has been read by now or not.
func (c *Caches) imported(ctx context.Context, id layer.ID) (l pack.Layer, ok bool) {
	if c.cache == nil {
		return l, false
	}
	if l, ok = c.cache.imports.Layer(id); !ok || l.Image {
		return l, ok
	}
	m, err := c.config.Layers.Manifest(ctx, id)
	return l, err != nil || m.Created.Equal(l.Created)
}

// Blob implements exporter.Layers. A blob that an import has in the right encoding is neither fetched nor, where the layer's files were
// needed, made again.
func (c *Caches) Blob(ctx context.Context, id layer.ID, f blob.Encoding) (blob.Blob, error) {
	if l, ok := c.imported(ctx, id); ok {
		if b, ok := l.Blobs[f.String()]; ok {
			return blob.Blob{Desc: b.Desc, DiffID: b.DiffID}, nil
		}
	}
	if c.cache != nil && c.config.Layers.Open(ctx, id) != nil {
		if err := c.Bring(ctx, id); err != nil {
			return blob.Blob{}, err
		}
	}
	return c.config.Layers.Blob(ctx, id, f)
}

// ofImage returns a layer that was found in the inline cache of an image. It is that of the image, also where it has been unpacked.
func (c *Caches) ofImage(id layer.ID) (l pack.Layer, ok bool) {
	if c.cache == nil {
		return l, false
	}
	l, ok = c.cache.imports.Layer(id)
	return l, ok && l.Image
}

// Fetch implements exporter.Layers.
func (c *Caches) Fetch(ctx context.Context, id layer.ID, desc ocispec.Descriptor) error {
	if c.cache == nil {
		return nil // the blob was made here
	}
	return registry.Download(ctx, fetcher{c.cache.imports, id}, "", desc, c.config.Store)
}

// Repository implements exporter.Layers.
func (c *Caches) Repository(id layer.ID) string {
	if c.cache == nil {
		return ""
	}
	return c.cache.imports.MountableFrom(id)
}

// Publishing begins to send what steps make that end from now on; inImage are the vertices whose layers are in the result.
func (c *Caches) Publishing(inImage map[llb.Digest]bool) {
	if c.inline != nil && c.inline.finished == nil {
		c.inline.finished = map[llb.Digest]events.Finished{}
		c.config.Events.Attach(c.inline)
	}
	if len(c.exports) > 0 && c.exporter == nil {
		c.exporter = newExporter(c, inImage)
		c.config.Events.Attach(c.exporter)
	}
}

// maxTries bounds how often a build starts again. Once a cache has turned out to lack one layer, it is asked for each that is relied upon.
const maxTries = 20

// interruptedTime is how long a build that was interrupted goes on to publish the steps that have succeeded.
const interruptedTime = 10 * time.Second

// Build calls solve and export, and publishes the caches beside export. A layer that turns out not to be where an import said makes it
// start again without that: the step that made it then runs. Steps that succeeded are published also if a later one fails.
func (c *Caches) Build(ctx context.Context, solve, export func(context.Context) error) error {
	if c.cache != nil {
		defer c.cache.imports.WarnUnsigned()
	}
	for try := 1; ; try++ {
		err := solve(ctx)
		if try < maxTries && c.drop(ctx, err) {
			continue
		}
		published := make(chan error, 1)
		go func() { published <- c.publish(ctx) }()
		if err == nil {
			err = export(ctx)
		}
		failed := <-published
		if try < maxTries && c.drop(ctx, err) {
			continue
		}
		if err == nil {
			err = failed
		}
		return err
	}
}

func (c *Caches) drop(ctx context.Context, err error) bool {
	return c.cache != nil && err != nil && ctx.Err() == nil && c.cache.Drop(err)
}

func (c *Caches) publish(ctx context.Context) error {
	if c.exporter == nil {
		return nil
	}
	if c.exporter.interrupted = ctx.Err() != nil; c.exporter.interrupted {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), interruptedTime)
		defer cancel()
	}
	return c.exporter.publishAll(ctx)
}
