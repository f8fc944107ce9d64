package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/cache"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/usage"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/solver"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Kind is what an Item is.
type Kind string

// The kinds of what a root directory keeps, besides images that have a name.
const (
	KindImage   Kind = "image"       // one without a name
	KindBlob    Kind = "blob"        // one that no image has
	KindLayer   Kind = "layer"       // files and manifest
	KindEntries Kind = "entries"     // of a base image's layer
	KindRecord  Kind = "record"      // with its log
	KindLog     Kind = "failed log"  // of a step that failed when it ran last
	KindCache   Kind = "cache mount" //
	KindGit     Kind = "git mirror"
	KindHTTP    Kind = "http note" // what a server said of a file
	KindContext Kind = "context"   // digests of a build context's files
	KindNote    Kind = "note"      // which blob became which by compression
	KindBuild   Kind = "build"     // its events, in the history
)

// Item is one thing of the root directory that can be removed by itself.
type Item struct {
	Kind Kind
	// ID is the item's name in its directory; an image's or blob's is its digest.
	ID string
	// Description is the step that made it, where that is known.
	Description string
	// Size is what it takes on disk in bytes, and Used when it was used last, within an hour.
	Size int64
	Used time.Time
	// Shared says that only PruneOptions.All removes the item: an image with a name has the layer, or it is no cache but what was
	// kept for the user.
	Shared bool

	path   string
	blobs  []digest.Digest // of an image or blob
	key    solver.Key      // of a record
	layers []string        // of a record
}

// PruneOptions say what Prune removes; the zero value removes all that no image with a name has.
type PruneOptions struct {
	// All removes also the cache of layers that images have, the logs of steps that failed, and the history of builds.
	All bool
	// Before keeps what was used since then; the zero time keeps nothing.
	Before time.Time
	// Of the rest the least recently used is removed until the root directory has no more than MaxUsed bytes, and its file system
	// MinFree free, but not below Reserved bytes. If all are 0, everything is removed.
	MaxUsed, MinFree, Reserved int64
	// DryRun removes nothing.
	DryRun bool
}

// Prune removes what is not used, and calls removed for each Item. What a running build relies on stays. It returns the sum of
// their sizes in bytes.
func (r *Root) Prune(ctx context.Context, o PruneOptions, removed func(Item) error) (int64, error) {
	if _, err := r.Work(); err != nil {
		return 0, err
	}
	all, err := r.Usage(ctx)
	if err != nil {
		return 0, err
	}
	excess, limited := o.excess(all.Total, r.free())
	slices.SortStableFunc(all.Items, func(x, y Item) int { return x.Used.Compare(y.Used) })
	p := &pruner{root: r, dry: o.DryRun, layers: map[string]bool{}}
	var sum int64
	for _, it := range all.Items {
		if limited && sum >= excess {
			break
		}
		if err := ctxio.Ended(ctx); err != nil {
			return sum, err
		}
		if it.Shared && !o.All || !o.Before.IsZero() && it.Used.After(o.Before) {
			continue
		}
		gone, err := p.remove(it)
		if err != nil {
			return sum, fmt.Errorf("remove %s %s: %w", it.Kind, it.ID, err)
		}
		if !gone {
			continue
		}
		sum += it.Size
		if err := removed(it); err != nil {
			return sum, err
		}
	}
	// Records of layers that are gone are of no use.
	for _, it := range all.Items {
		if it.Kind != KindRecord || p.records[it.key] || !slices.ContainsFunc(it.layers, p.goneLayer) {
			continue
		}
		if err := ctxio.Ended(ctx); err != nil {
			return sum, err
		}
		if _, err := p.remove(it); err != nil {
			return sum, fmt.Errorf("remove record %s: %w", it.ID, err)
		}
		sum += it.Size
		if err := removed(it); err != nil {
			return sum, err
		}
	}
	if o.DryRun {
		return sum, nil
	}
	return sum, r.work.Records.Sweep()
}

// goneLayer reports whether a layer was removed, now or before.
func (p *pruner) goneLayer(id string) bool { return p.layers[id] || !p.root.hasLayer(id) }

func (r *Root) hasLayer(id string) bool {
	_, err := os.Lstat(r.work.Layers.Path(id))
	return !errors.Is(err, fs.ErrNotExist)
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

// free returns how many bytes are free on the root's file system for its user.
func (r *Root) free() int64 {
	var st unix.Statfs_t
	if unix.Statfs(r.Dir(), &st) != nil {
		return 0
	}
	return int64(st.Bavail) * st.Bsize
}

type pruner struct {
	root    *Root
	dry     bool
	layers  map[string]bool     // that are gone
	records map[solver.Key]bool // that are gone
	reached map[digest.Digest]bool
	index   string // what reached was computed from
}

// remove removes an item unless somebody uses it.
func (p *pruner) remove(it Item) (gone bool, err error) {
	if p.dry {
		gone = !p.inUse(it)
	} else {
		gone, err = p.removeNow(it)
	}
	if gone && it.Kind == KindLayer {
		p.layers[it.ID] = true
	}
	if gone && it.Kind == KindRecord {
		if p.records == nil {
			p.records = map[solver.Key]bool{}
		}
		p.records[it.key] = true
	}
	return gone, err
}

// inUse reports whether a process that lives relies on the item.
func (p *pruner) inUse(it Item) bool {
	switch it.Kind {
	case KindLayer, KindBlob, KindImage:
		return lease.InUse(it.path)
	case KindRecord:
		return slices.ContainsFunc(it.layers, func(id string) bool { return lease.InUse(p.root.work.Layers.Path(id)) })
	case KindCache:
		return lease.InUse(filepath.Join(it.path, "lock"))
	case KindGit:
		return lease.InUse(it.path + ".lock")
	}
	return false
}

func (p *pruner) removeNow(it Item) (bool, error) {
	trash := p.root.work.Scratch.Path()
	switch it.Kind {
	case KindRecord:
		// A record is read whole before it is used, but without it the work of a running build would be lost.
		if p.inUse(it) {
			return false, nil
		}
		return true, p.root.work.Records.Remove(it.key)
	case KindLayer:
		return reap(lease.Remove(it.path, trash))
	case KindImage:
		if gone, err := p.root.Images.Forget(it.blobs[0]); err != nil || !gone {
			return false, err
		}
		_, err := p.removeBlobs(it.blobs)
		return true, err
	case KindBlob:
		return p.removeBlobs(it.blobs)
	case KindCache:
		return underLock(filepath.Join(it.path, "lock"), false, func() (bool, error) { return reap(lease.Trash(it.path, trash)) })
	case KindGit:
		return underLock(it.path+".lock", true, func() (bool, error) { return reap(lease.Trash(it.path, trash)) })
	default:
		return reap(lease.Trash(it.path, trash))
	}
}

// reap deletes what was taken away.
func reap(gone string, ok bool, err error) (bool, error) {
	if !ok {
		return false, err
	}
	// What cannot be removed here is reported when the process's directory is.
	_ = dirtree.Remove(filepath.Dir(gone))
	return true, err
}

// underLock calls f with the lock file locked, which is removed afterwards if that is asked for; false if somebody holds it.
func underLock(file string, remove bool, f func() (bool, error)) (bool, error) {
	l, err := lock.Try(file, false)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	gone, err := f()
	if remove {
		return gone, errors.Join(err, l.Remove())
	}
	return gone, errors.Join(err, l.Release())
}

// removeBlobs removes the blobs that no image has and nobody holds. The list of images cannot change meanwhile: what is not on
// it now can only get onto it by one who holds its blobs before.
func (p *pruner) removeBlobs(blobs []digest.Digest) (gone bool, err error) {
	err = p.root.Images.Locked(func(entries []ocispec.Descriptor) error {
		if index := fmt.Sprint(entries); p.reached == nil || index != p.index {
			images := reached{store: p.root.Images, blobs: map[digest.Digest]int64{}, diffIDs: map[string]bool{}}
			for _, e := range entries {
				images.add(e)
			}
			p.index, p.reached = index, map[digest.Digest]bool{}
			for d := range images.blobs {
				p.reached[d] = true
			}
		}
		for _, d := range blobs {
			path, err := p.root.Images.Path(d)
			if err != nil {
				return err
			}
			if p.reached[d] {
				continue
			}
			ok, err := reap(lease.Remove(path, p.root.work.Scratch.Path()))
			if err != nil {
				return err
			}
			gone = gone || ok
		}
		return nil
	})
	return gone, err
}

// reached is what images have.
type reached struct {
	store   *cas.Store
	blobs   map[digest.Digest]int64 // with their sizes as the images have them
	diffIDs map[string]bool         // in hexadecimal digits
}

// add adds what a manifest, index or other blob reaches. A blob that is not there, as those of other platforms of an index
// that was pulled for one, reaches nothing.
func (r *reached) add(desc ocispec.Descriptor) {
	if _, ok := r.blobs[desc.Digest]; ok {
		return
	}
	r.blobs[desc.Digest] = desc.Size
	if !registry.IsIndex(desc.MediaType) && !registry.IsManifest(desc.MediaType) {
		return
	}
	var m struct {
		Manifests []ocispec.Descriptor
		Config    *ocispec.Descriptor
		Layers    []ocispec.Descriptor
	}
	data, err := r.store.ReadAll(desc, 0)
	if err != nil || json.Unmarshal(data, &m) != nil {
		return
	}
	for _, d := range slices.Concat(m.Manifests, m.Layers) {
		r.add(d)
	}
	if m.Config == nil {
		return
	}
	r.add(*m.Config)
	var config ocispec.Image
	if data, err = r.store.ReadAll(*m.Config, 0); err == nil && json.Unmarshal(data, &config) == nil {
		for _, d := range config.RootFS.DiffIDs {
			r.diffIDs[d.Encoded()] = true
		}
	}
}

// RootUsage is what a root directory keeps.
type RootUsage struct {
	// Items can be removed.
	Items []Item
	// Images are those that have a name, and ImagesSize what their blobs take in bytes.
	Images     int
	ImagesSize int64
	// Total is the sum of everything in bytes.
	Total int64
}

// Usage measures what the root directory keeps.
func (r *Root) Usage(ctx context.Context) (*RootUsage, error) {
	if _, err := r.Work(); err != nil {
		return nil, err
	}
	u := &RootUsage{}
	images, err := r.Images.Images()
	if err != nil {
		return nil, err
	}
	named := reached{store: r.Images, blobs: map[digest.Digest]int64{}, diffIDs: map[string]bool{}}
	seen := map[digest.Digest]bool{}
	for _, img := range images {
		if err := ctxio.Ended(ctx); err != nil {
			return nil, err
		}
		if img.Name != "" {
			named.add(img.Desc)
			if !seen[img.Desc.Digest] {
				seen[img.Desc.Digest] = true
				u.Images++
			}
		}
	}
	if err := r.blobItems(ctx, u, images, &named); err != nil {
		return nil, err
	}
	records, err := r.recordItems(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.layerItems(ctx, u, records, &named); err != nil {
		return nil, err
	}
	if err := r.logItems(ctx, u); err != nil {
		return nil, err
	}
	if err := r.otherItems(ctx, u, &named); err != nil {
		return nil, err
	}
	u.Total = u.ImagesSize
	for _, it := range u.Items {
		u.Total += it.Size
	}
	return u, nil
}

// blobItems adds the images without a name, each with the blobs that it has alone, and the blobs that no image has.
func (r *Root) blobItems(ctx context.Context, u *RootUsage, images []cas.Image, named *reached) error {
	items := map[digest.Digest]*Item{} // of blobs
	err := r.Images.Blobs(func(d digest.Digest, size int64) error {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		path, err := r.Images.Path(d)
		if err != nil {
			return err
		}
		it := &Item{Kind: KindBlob, ID: d.String(), path: path, blobs: []digest.Digest{d}}
		if it.measure() {
			items[d] = it
		}
		return nil
	})
	if err != nil {
		return err
	}
	for d := range named.blobs {
		if it := items[d]; it != nil {
			u.ImagesSize += it.Size
			delete(items, d)
		}
	}
	counted := map[digest.Digest]bool{}
	for _, img := range images {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		manifest := items[img.Desc.Digest]
		if img.Name != "" || manifest == nil {
			continue
		}
		own := reached{store: r.Images, blobs: map[digest.Digest]int64{}, diffIDs: map[string]bool{}}
		own.add(img.Desc)
		it := Item{Kind: KindImage, ID: img.Desc.Digest.String(), path: manifest.path, Used: manifest.Used, blobs: []digest.Digest{img.Desc.Digest}}
		for d := range own.blobs {
			blob := items[d]
			if blob == nil {
				continue
			}
			if d != img.Desc.Digest {
				it.blobs = append(it.blobs, d)
			}
			if !counted[d] {
				it.Size += blob.Size
				counted[d] = true
			}
		}
		u.Items = append(u.Items, it)
	}
	for d, it := range items {
		if !counted[d] {
			u.Items = append(u.Items, *it)
		}
	}
	return nil
}

// measure fills in size and time of an item that is one file; false if it is not there.
func (it *Item) measure() bool {
	var st unix.Stat_t
	if unix.Lstat(it.path, &st) != nil {
		return false
	}
	it.Size, it.Used = usage.Stat(&st), time.Unix(st.Mtim.Sec, st.Mtim.Nsec)
	return true
}

func (r *Root) recordItems(ctx context.Context) ([]Item, error) {
	var items []Item
	err := r.work.Records.All(func(s cache.Stored) error {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		it := Item{Kind: KindRecord, ID: s.Key.String(), Size: s.Size, Used: s.Used, key: s.Key}
		if s.Record != nil {
			it.Description = s.Record.Name
			for _, m := range s.Record.Outputs {
				it.layers = append(it.layers, m.ID)
			}
		}
		items = append(items, it)
		return nil
	})
	return items, err
}

// layerItems adds the layers and the records.
func (r *Root) layerItems(ctx context.Context, u *RootUsage, records []Item, named *reached) error {
	ids, err := r.work.Layers.IDs()
	if err != nil {
		return err
	}
	names := map[string]string{}
	for _, r := range records {
		for _, id := range r.layers {
			names[id] = cmp.Or(names[id], r.Description)
		}
	}
	shared := map[string]bool{}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, id := range ids {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			it := Item{Kind: KindLayer, ID: id, Description: names[id], Shared: named.diffIDs[id], path: r.work.Layers.Path(id)}
			if !it.measure() {
				return nil
			}
			for _, note := range exporter.Notes(it.path) {
				if _, diffID, err := exporter.ReadNote(note); err == nil && named.diffIDs[diffID.Encoded()] {
					it.Shared = true
				}
			}
			var err error
			if it.Size, err = usage.Of(ctx, it.path); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			shared[id] = it.Shared
			u.Items = append(u.Items, it)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("measure the layers: %w", err)
	}
	r.goLast(u.Items, shared)
	for _, r := range records {
		r.Shared = slices.ContainsFunc(r.layers, func(id string) bool { return shared[id] })
		u.Items = append(u.Items, r)
	}
	return nil
}

// goLast makes the base of delta layers go after them: it counts as shared if one of them is, and as used when they were.
func (r *Root) goLast(items []Item, shared map[string]bool) {
	used := map[string]time.Time{}
	for _, it := range items {
		if it.Kind != KindLayer {
			continue
		}
		if base := r.work.Layers.Base(it.ID); base != "" {
			shared[base] = shared[base] || it.Shared
			if used[base].Before(it.Used) {
				used[base] = it.Used
			}
		}
	}
	for i := range items {
		if it := &items[i]; it.Kind == KindLayer {
			it.Shared = shared[it.ID]
			if last := used[it.ID]; !it.Used.After(last) && !last.IsZero() {
				it.Used = last.Add(time.Nanosecond)
			}
		}
	}
}

// logItems adds the logs of steps that failed.
func (r *Root) logItems(ctx context.Context, u *RootUsage) error {
	return r.work.Records.FailedLogs(func(l cache.FailedLog) error {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		it := Item{Kind: KindLog, ID: l.Key.String(), Used: l.Used, Shared: true, path: l.Path}
		if it.measure() {
			u.Items = append(u.Items, it)
		}
		return nil
	})
}

// otherItems adds what is neither image nor record nor layer.
func (r *Root) otherItems(ctx context.Context, u *RootUsage, named *reached) error {
	for _, place := range []struct {
		kind Kind
		dir  string
	}{{KindEntries, "entries"}, {KindCache, "mounts"}, {KindGit, "git"}, {KindHTTP, "http"}, {KindContext, "context"}, {KindNote, "compressed"}, {KindBuild, history.DirName}} {
		dir := filepath.Join(r.Dir(), place.dir)
		names, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, name := range names {
			it := Item{Kind: place.kind, ID: name.Name(), path: filepath.Join(dir, name.Name())}
			if place.kind == KindGit && strings.HasSuffix(it.ID, ".lock") {
				if _, err := os.Lstat(strings.TrimSuffix(it.path, ".lock")); err == nil {
					continue
				}
				it.path, it.ID = strings.TrimSuffix(it.path, ".lock"), strings.TrimSuffix(it.ID, ".lock")
			}
			if err := ctxio.Ended(ctx); err != nil {
				return err
			}
			if !it.measure() && place.kind != KindGit {
				continue
			}
			it.Shared = place.kind == KindBuild || place.kind == KindEntries && named.diffIDs[it.ID]
			// A directory's own time says nothing of what is in it; the lock's is that of its last use.
			switch place.kind {
			case KindCache:
				it.usedAt(filepath.Join(it.path, "lock"))
			case KindGit:
				it.usedAt(it.path + ".lock")
			}
			if it.Size, err = usage.Of(ctx, it.path); err != nil {
				return fmt.Errorf("measure %s: %w", it.path, err)
			}
			u.Items = append(u.Items, it)
		}
	}
	return nil
}

func (it *Item) usedAt(file string) {
	if info, err := os.Lstat(file); err == nil {
		it.Used = info.ModTime()
	}
}
