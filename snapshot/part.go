package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/usage"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"golang.org/x/sync/errgroup"
)

// layersPart implements part.Part for the layers.
type layersPart struct{ store *Store }

// Part returns the layers as a part of the root directory.
func (s *Store) Part() part.Part { return &layersPart{s} }

// EntriesPart returns the manifests that Index stores as a part of the root directory.
func (s *Store) EntriesPart() part.Part {
	return &part.Files{
		Root: filepath.Dir(s.dir), Dir: rootdir.Entries, Trash: s.tmp, Kind: part.Entries, Names: part.Hash, Effect: "the layer is read again",
		Sound: func(path string) error {
			m, err := layer.OpenManifest(path)
			if err != nil {
				return err
			}
			return m.Close()
		},
	}
}

// Name implements part.Part.
func (p *layersPart) Name() string { return "layers" }

// Items implements part.Part.
func (p *layersPart) Items(ctx context.Context) iter.Seq2[part.Item, error] {
	return func(yield func(part.Item, error) bool) {
		items, err := p.items(ctx)
		if err != nil {
			yield(part.Item{}, fmt.Errorf("measure the layers: %w", err))
			return
		}
		for _, it := range items {
			if !yield(it, nil) {
				return
			}
		}
	}
}

// items measures several layers concurrently, since it mostly waits for the disk.
func (p *layersPart) items(ctx context.Context) ([]part.Item, error) {
	ids, err := p.store.IDs()
	if err != nil {
		return nil, err
	}
	var items []part.Item
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, id := range ids {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			it := part.Item{Kind: part.Layer, ID: string(id), Base: string(p.store.Base(id))}
			dir := p.store.Path(id)
			if !it.Measure(dir) {
				return nil
			}
			for _, note := range blob.Notes(dir) {
				if b, err := blob.ReadNote(note); err == nil {
					it.DiffIDs = append(it.DiffIDs, b.DiffID.Encoded())
				}
			}
			var err error
			if it.Size, err = usage.Of(ctx, dir); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			items = append(items, it)
			return nil
		})
	}
	return items, g.Wait()
}

// InUse implements part.Part.
func (p *layersPart) InUse(it part.Item) bool { return lease.InUse(p.store.Path(layer.ID(it.ID))) }

// Remove implements part.Part.
func (p *layersPart) Remove(it part.Item) (bool, error) {
	return part.Reap(lease.Remove(p.store.Path(layer.ID(it.ID)), p.store.tmp))
}

// inLayer matches the names that a layer's directory may contain: see Store.
var inLayer = part.NewPattern(`^(fs|fs\.delta-[0-9a-f]{64}|fs\.no-whiteouts|manifest|unsynced|blob\.[a-z0-9.-]+)$`)

// Check implements part.Part: it compares every layer with its manifest.
func (p *layersPart) Check(ctx context.Context, r *part.Report) error {
	if err := r.Dir(rootdir.Layers, part.Hash.MatchString); err != nil {
		return err
	}
	ids, err := p.store.IDs()
	if err != nil {
		return err
	}
	r.Count(part.Layer, len(ids))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, id := range ids {
		g.Go(func() error { return p.check(ctx, r, id) })
	}
	return g.Wait()
}

// maxDamage is the maximum number of damaged files reported for one layer.
const maxDamage = 20

// damage describes a damaged file of a layer.
type damage struct{ path, what string }

// check reports the damage of one layer.
func (p *layersPart) check(ctx context.Context, r *part.Report, id layer.ID) error {
	var all []damage
	more := 0
	err := p.store.Verify(ctx, id, func(path, what string) {
		if len(all) == maxDamage {
			more++
			return
		}
		all = append(all, damage{path, what})
	}, r.Read)
	if err != nil {
		return err
	}
	if err := p.checkNames(r, id); err != nil || len(all) == 0 {
		return err
	}
	removed := false
	if r.Repair {
		if removed, err = p.Remove(part.Item{Kind: part.Layer, ID: string(id)}); err != nil {
			return fmt.Errorf("repair layer %s: %w", id, err)
		}
	}
	r.SetDamaged(part.Layer, string(id))
	effect := "the next build that needs the layer makes it again"
	switch {
	case r.Repair && !removed:
		effect = "a running build uses the layer: repair again when it has finished"
	case !r.Repair && !strings.HasPrefix(all[0].path, "manifest"):
		effect = "a step may see it, and reading it fails: kiln check --repair removes the layer, and it is made again"
	}
	dir := filepath.Join(rootdir.Layers, string(id))
	for _, d := range all {
		r.Found(part.Finding{Path: filepath.Join(dir, d.path), Problem: d.what, Effect: effect, Repaired: removed})
	}
	if more > 0 {
		r.Found(part.Finding{Path: dir, Problem: fmt.Sprintf("has %d more damaged files", more), Effect: effect, Repaired: removed})
	}
	return nil
}

// checkNames checks the contents of a layer's directory other than the layer's files, and reads the notes of blobs.
func (p *layersPart) checkNames(r *part.Report, id layer.ID) error {
	dir := p.store.Path(id)
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was pruned
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		path := filepath.Join(dir, n.Name())
		if !inLayer.MatchString(n.Name()) {
			if err := r.Problem(path, "does not belong here", part.Foreign, nil); err != nil {
				return err
			}
		}
	}
	for _, note := range blob.Notes(dir) {
		if _, err := blob.ReadNote(note); err != nil && !errors.Is(err, fs.ErrNotExist) {
			remove := func() error { return dirtree.Remove(note) }
			if err := r.Problem(note, "is damaged: "+err.Error(), "the blob is made again", remove); err != nil {
				return err
			}
		}
	}
	return nil
}

// Content returns the content digest of a layer, whether or not its files are sound. It returns false if its manifest cannot be
// read.
func (s *Store) Content(id layer.ID) (content layer.Digest, ok bool) {
	m, err := layer.OpenManifest(s.manifestPath(id))
	if err != nil {
		return content, false
	}
	defer m.Close()
	return m.Content, true
}
