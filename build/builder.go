// Package build puts kiln together: it is the only package that knows frontend, solver, stores, registries and exporters.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"github.com/kilnbuild/kiln/cache"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/cdi"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/scratch"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/snapshot"
)

// Builder builds images and keeps them in one root directory. Its methods may be called from several goroutines.
type Builder struct {
	ctx    context.Context
	store  *cas.Store
	client *registry.Client
	// cdiDirs are where the specifications of devices are.
	cdiDirs []string
	// gc is what kiln.toml says of collecting.
	gc config.GC
	// limits are those of kiln.toml.
	limits Limits
	// userns is --userns as kiln.toml has it.
	userns string
	// noProcessSandbox is --no-process-sandbox as kiln.toml has it.
	noProcessSandbox bool
	// keep says which builds stay in the history.
	keep history.Retention
	// archive bounds what is unpacked.
	archive layer.Limit

	// What only builds need is opened by the first one.
	once      sync.Once
	openErr   error
	scratch   *scratch.Dir
	snapshots *snapshot.Store
	cache     *cache.Cache
	history   *history.History
}

// New opens the root directory, which it makes if it is missing: "." for one that was entered, see package rootdir. Close must be
// called. The context is that of the process, for what its builds have in common.
func New(ctx context.Context, root string, cfg *config.Config) (*Builder, error) {
	store, err := cas.Open(root)
	if err != nil {
		return nil, err
	}
	store.Context = ctx
	b := &Builder{ctx: ctx, store: store, client: registry.New(cfg.Registries), cdiDirs: cfg.CDI.SpecDirs}
	b.userns, b.noProcessSandbox = cfg.Userns, cfg.NoProcessSandbox
	if err := CheckUserns(b.userns); err != nil {
		return nil, fmt.Errorf("kiln.toml: userns = %q: %w", b.userns, err)
	}
	if b.limits, err = configured(cfg.Limits); err != nil {
		return nil, err
	}
	b.archive = layer.Limit{Size: cfg.Archive.Size, Entries: cfg.Archive.MaxEntries}
	b.gc, b.keep = cfg.GC, retention(cfg.History)
	if _, err := b.collection(); err != nil {
		return nil, err
	}
	if len(b.cdiDirs) == 0 {
		b.cdiDirs = cdi.DefaultDirs
	}
	return b, nil
}

// open makes ready what builds and exports work with.
func (b *Builder) open() error {
	b.once.Do(func() {
		b.openErr = func() (err error) {
			root := b.store.Root()
			if b.scratch, err = scratch.Open(filepath.Join(root, "tmp")); err != nil {
				return err
			}
			sweepLocks(root)
			ns, err := userns.Current()
			if err != nil {
				return err
			}
			if b.snapshots, err = snapshot.Open(root, b.scratch.Path(), ns); err != nil {
				return err
			}
			b.snapshots.Context = b.ctx
			b.snapshots.Limit, b.snapshots.Blob, b.snapshots.CheckBlobs = b.archive, b.packed, func(id string) { b.blobs().Check(b.ctx, id) }
			b.history = history.Open(root, b.scratch.Path(), b.keep)
			b.cache, err = cache.Open(root, b.scratch.Path())
			return err
		}()
	})
	return b.openErr
}

// sweepLocks removes the locks of dead processes, but for that of the list of images, which is the store's and stays.
func sweepLocks(root string) { lock.Sweep(filepath.Join(root, "locks"), "index") }

// syncLimit is with how many unwritten bytes of the whole machine a build still syncs the disk at its end: what any disk writes
// in a fraction of a second.
const syncLimit = 8 << 20

// Close frees what the builder holds.
func (b *Builder) Close() error {
	if b.scratch == nil {
		return b.store.Release()
	}
	var err error
	if b.snapshots != nil {
		err = errors.Join(b.snapshots.Sync(syncLimit), b.snapshots.Release())
	}
	err = errors.Join(err, b.store.Release(), b.scratch.Close())
	if b.scratch.FoundDead() {
		// A process that was killed shortly before this one began may have had children that held its locks while they were dying.
		b.store.Sweep()
		sweepLocks(b.store.Root())
		sandbox.Sweep()
	}
	return err
}

// Left returns what killed processes have left in the root directory and cannot be removed: nothing else removes it. It is known in full
// after Close.
func (b *Builder) Left() []error {
	if b.scratch == nil {
		return nil
	}
	return b.scratch.Left()
}

func (b *Builder) blobs() *exporter.Blobs {
	return &exporter.Blobs{Store: b.store, Snapshots: b.snapshots}
}

// packed is snapshot.Store's Blob.
func (b *Builder) packed(id string) (snapshot.Blob, bool) {
	open, ok := b.blobs().Packed(id)
	return func() (io.ReadCloser, error) {
		blob, err := open()
		if err != nil {
			return nil, err
		}
		plain, err := layer.Uncompress(blob)
		if err != nil {
			blob.Close()
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{plain, closers{plain, blob}}, nil
	}, ok
}

type closers []io.Closer

func (c closers) Close() error {
	var err error
	for _, one := range c {
		err = errors.Join(err, one.Close())
	}
	return err
}
