package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/part"
	"golang.org/x/sys/unix"
)

// PruneOptions say what Prune removes; the zero value removes all that no image with a name has.
type PruneOptions struct {
	// All removes also the cache of layers that images have, the logs of steps that failed, and the history of builds.
	All bool
	// Before keeps what was used since then; the zero time keeps nothing.
	Before time.Time
	// Of the rest the least recently used is removed until the root directory has no more than MaxUsed bytes, and its file system
	// MinFree free, but not below Reserved bytes. If all are 0, everything is removed.
	MaxUsed, MinFree, Reserved int64
	// Keep reports whether an item stays that would be removed; nil keeps none.
	Keep func(part.Item) bool
	// DryRun removes nothing.
	DryRun bool
}

// Prune removes what is not used, the least recently used first, and calls removed for each item. What a running build relies on stays. It
// returns the sum of their sizes in bytes.
func (r *Root) Prune(ctx context.Context, o PruneOptions, removed func(part.Item) error) (int64, error) {
	all, w, err := r.measure(ctx)
	if err != nil {
		return 0, err
	}
	p := &pruner{Usage: all, dry: o.DryRun, gone: map[string]bool{}, there: map[string]bool{}, removed: removed}
	for _, it := range all.Items {
		if it.Kind == part.Layer {
			p.there[it.ID] = true
		}
	}
	if err := p.all(ctx, o, r.free()); err != nil {
		return p.sum, err
	}
	if err := p.useless(ctx); err != nil || o.DryRun {
		return p.sum, err
	}
	return p.sum, w.Records.Sweep()
}

// excess returns how many bytes have to go of total, and whether there is a limit at all: as BuildKit computes it
// (cache/manager.go, calculateKeepBytes).
func (o PruneOptions) excess(total, free int64) (int64, bool) {
	if o.MaxUsed == 0 && o.MinFree == 0 && o.Reserved == 0 {
		return 0, false
	}
	keep := o.MaxUsed
	if lack := o.MinFree - free; lack > 0 {
		if keep == 0 {
			keep = total - lack
		} else {
			keep = min(keep, total-lack)
		}
	} else if keep == 0 && o.MinFree > 0 {
		return 0, true // there is room
	}
	return total - max(keep, o.Reserved), true
}

// free returns how many bytes are free on the file system of the root directory for its user.
func (r *Root) free() int64 {
	var st unix.Statfs_t
	if unix.Statfs(r.Dir(), &st) != nil {
		return 0
	}
	return int64(st.Bavail) * st.Bsize
}

// pruner is one walk of Prune.
type pruner struct {
	*Usage
	dry     bool
	there   map[string]bool // layers that were there at the beginning
	gone    map[string]bool // items that were removed, by kind and ID
	removed func(part.Item) error
	sum     int64
}

func key(k part.Kind, id string) string { return string(k) + " " + id }

// all removes what the options ask for.
func (p *pruner) all(ctx context.Context, o PruneOptions, free int64) error {
	excess, limited := o.excess(p.Total, free)
	slices.SortStableFunc(p.Items, func(x, y part.Item) int { return x.Used.Compare(y.Used) })
	for _, it := range p.Items {
		if limited && p.sum >= excess {
			return nil
		}
		if o.Keep != nil && o.Keep(it) || it.Shared && !o.All || !o.Before.IsZero() && it.Used.After(o.Before) {
			continue
		}
		if err := p.remove(ctx, it); err != nil {
			return err
		}
	}
	return nil
}

// useless removes the records of layers that are gone.
func (p *pruner) useless(ctx context.Context) error {
	for _, it := range p.Items {
		lost := func(id string) bool { return !p.there[id] || p.gone[key(part.Layer, id)] }
		if p.gone[key(it.Kind, it.ID)] || !slices.ContainsFunc(it.Layers, lost) {
			continue
		}
		if err := p.remove(ctx, it); err != nil {
			return err
		}
	}
	return nil
}

// remove removes an item unless it, or a layer that it belongs to, is in use.
func (p *pruner) remove(ctx context.Context, it part.Item) (err error) {
	if err := ctxio.Ended(ctx); err != nil {
		return err
	}
	if slices.ContainsFunc(it.Layers, p.layerInUse) {
		return nil
	}
	from := p.parts[it.Kind]
	gone := p.dry && !from.InUse(it)
	if !p.dry {
		if gone, err = from.Remove(it); err != nil {
			return fmt.Errorf("remove %s %s: %w", it.Kind, it.ID, err)
		}
	}
	if !gone {
		return nil
	}
	p.gone[key(it.Kind, it.ID)] = true
	p.sum += it.Size
	return p.removed(it)
}

func (p *pruner) layerInUse(id string) bool {
	return p.there[id] && p.parts[part.Layer].InUse(part.Item{Kind: part.Layer, ID: id})
}
