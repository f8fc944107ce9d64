// Package store is kiln's root directory: it opens the parts that lie there, once for each process, and measures, checks and empties them.
package store

import (
	"context"
	"errors"
	"sync"

	"github.com/kilnbuild/kiln/cache"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/scratch"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// Root is a root directory that is open. Any number of builds use one Root, at the same time and one after the other; other processes
// have Roots of their own on the same directory. Its methods may be called from several goroutines.
type Root struct {
	// Images is the image store, which every Root has open.
	Images *cas.Store
	// Archive bounds what is unpacked.
	Archive layer.Limit

	ctx context.Context
	gc  config.GC
	// configFile is the file that gc comes from, for errors.
	configFile string
	keep       history.Retention

	once    sync.Once
	openErr error
	work    *Work
}

// Work is what builds work with, besides images. It is opened when it is first needed, since to list images needs none of it.
type Work struct {
	// Scratch is the directory of this process for what is unfinished.
	Scratch *scratch.Dir
	Layers  *snapshot.Store
	Records *cache.Cache
	History *history.History
}

// Open opens the root directory dir, which it makes if it is missing: "." for one that was entered, see package rootdir. Close must be
// called. The end of ctx ends what builds have in common, as unpacking a layer that several wait for.
func Open(ctx context.Context, dir string, cfg *config.Config) (*Root, error) {
	images, err := cas.Open(dir)
	if err != nil {
		return nil, err
	}
	images.Context = ctx
	r := &Root{
		Images:  images,
		Archive: layer.Limit{Size: cfg.Archive.Size, Entries: cfg.Archive.MaxEntries},
		ctx:     ctx, gc: cfg.GC, configFile: cfg.File, keep: retention(cfg.History),
	}
	if _, err := r.collection(); err != nil {
		return nil, err
	}
	return r, nil
}

// Dir returns the directory, as Open was told it.
func (r *Root) Dir() string { return r.Images.Root() }

// Name returns the absolute path that the directory had when it was opened, for people to read.
func (r *Root) Name() string { return r.Images.Name() }

// path returns the path of one of the directory's parts, by its name in package rootdir.
func (r *Root) path(part string) string { return rootdir.Path(r.Dir(), part) }

// Work opens what builds work with, and returns the same each time.
func (r *Root) Work() (*Work, error) {
	r.once.Do(func() { r.openErr = r.open() })
	return r.work, r.openErr
}

func (r *Root) open() error {
	dir, err := scratch.Open(r.path(rootdir.Tmp))
	if err != nil {
		return err
	}
	w := &Work{Scratch: dir}
	r.work = w // Close removes the directory, whatever follows
	r.sweepLocks()
	ns, err := userns.Current()
	if err != nil {
		return err
	}
	w.Layers, err = snapshot.Open(snapshot.Config{Root: r.Dir(), Tmp: dir.Path(), NS: ns, Limit: r.Archive, Blobs: blob.Store{CAS: r.Images}})
	if err != nil {
		return err
	}
	w.History = history.Open(r.Dir(), dir.Path(), r.keep)
	w.Records, err = cache.Open(r.Dir(), dir.Path())
	return err
}

// sweepLocks removes the locks of dead processes, but for that of the list of images, which is the image store's and stays.
func (r *Root) sweepLocks() { lock.Sweep(r.path(rootdir.Locks), rootdir.IndexLock) }

// Close lets go of what the process relied on.
func (r *Root) Close() error {
	w := r.work
	if w == nil {
		return r.Images.Release()
	}
	var err error
	if w.Layers != nil {
		err = w.Layers.Close()
	}
	err = errors.Join(err, r.Images.Release(), w.Scratch.Close())
	if w.Scratch.FoundDead() {
		// A process that was killed shortly before this one began may have had children that held its locks while they were dying.
		r.Images.Sweep()
		r.sweepLocks()
		sandbox.Sweep()
	}
	return err
}

// Left returns what killed processes have left in the root directory and cannot be removed: nothing else removes it. It is known in full
// after Close.
func (r *Root) Left() []error {
	if r.work == nil {
		return nil
	}
	return r.work.Scratch.Left()
}

// Blobs returns the blobs of images.
func (r *Root) Blobs() *exporter.Blobs { return &exporter.Blobs{Store: r.Images} }

// retention returns what kiln.toml says of the history, as BuildKit reads the same section.
func retention(c *config.History) history.Retention {
	if c == nil {
		return history.Default
	}
	keep := history.Retention{Age: c.MaxAge.Duration}
	if c.MaxEntries != nil {
		keep.Entries, keep.Off = int(*c.MaxEntries), *c.MaxEntries == 0
	}
	return keep
}
