package store

import (
	"context"
	"slices"

	"github.com/kilnbuild/kiln/internal/cachemount"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/received"
	"github.com/kilnbuild/kiln/internal/resolved"
	"github.com/kilnbuild/kiln/sbom"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// parts returns all parts that hold items, for one walk. Each is checked after those that it refers to.
func (r *Root) parts(w *Work, named *cas.Named) []part.Part {
	root, trash := r.Dir(), w.Scratch.Path()
	return []part.Part{
		r.Images.Part(trash, named),
		w.Layers.Part(),
		w.Records.Part(func(id string) (layer.Digest, bool) { return w.Layers.Content(layer.ID(id)) }),
		w.Layers.EntriesPart(),
		cachemount.Part(root, trash),
		git.Part(root, trash),
		httpsource.Part(root, trash),
		resolved.Part(root, trash),
		sbom.Part(root, trash),
		localdir.Part(root, trash),
		received.Part(root, trash),
		blob.Part(root, trash),
		w.History.Part(),
	}
}

// Usage is what a root directory keeps.
type Usage struct {
	// Items can be removed.
	Items []part.Item
	// Images are those that have a name, and ImagesSize what their blobs take in bytes.
	Images     int
	ImagesSize int64
	// Total is the sum of everything in bytes.
	Total int64

	parts map[part.Kind]part.Part
}

// InUse reports whether a live process relies on one of the Items. Like Items it is for one goroutine.
func (u *Usage) InUse(it part.Item) bool { return u.parts[it.Kind].InUse(it) }

// Usage measures what the root directory keeps.
func (r *Root) Usage(ctx context.Context) (*Usage, error) {
	u, _, err := r.measure(ctx)
	return u, err
}

// measure measures all parts.
func (r *Root) measure(ctx context.Context) (*Usage, *Work, error) {
	w, err := r.Work()
	if err != nil {
		return nil, nil, err
	}
	named, err := r.Images.Named(ctx)
	if err != nil {
		return nil, nil, err
	}
	u := &Usage{Images: named.Images, ImagesSize: named.Size, Total: named.Size, parts: map[part.Kind]part.Part{}}
	// What refers to others is listed before them: what it refers to was there before it.
	for _, p := range slices.Backward(r.parts(w, named)) {
		for it, err := range p.Items(ctx) {
			if err != nil {
				return nil, nil, err
			}
			u.Items, u.parts[it.Kind] = append(u.Items, it), p
			u.Total += it.Size
		}
	}
	relate(u.Items, &named.Reached)
	return u, w, nil
}

// relate fills in what items of different parts have to do with each other: which layers, entries and records belong to images that have a
// name, and are therefore more than cache; what made a layer; and that a layer goes after those that need it.
func relate(items []part.Item, named *cas.Reached) {
	layers := map[string]*part.Item{}
	for i := range items {
		it := &items[i]
		if it.Kind == part.Layer || it.Kind == part.Entries {
			it.Shared = named.DiffIDs[it.ID]
			for _, d := range it.DiffIDs {
				it.Shared = it.Shared || named.DiffIDs[d]
			}
		}
		if it.Kind == part.Layer {
			layers[it.ID] = it
		}
	}
	for _, it := range layers {
		if base := layers[it.Base]; base != nil {
			base.Shared = base.Shared || it.Shared
			if !base.Used.After(it.Used) {
				base.Used = it.Used.Add(1)
			}
		}
	}
	for i := range items {
		it := &items[i]
		for _, id := range it.Layers {
			if l := layers[id]; l != nil {
				it.Shared = it.Shared || l.Shared
				if l.Description == "" {
					l.Description = it.Description
				}
			}
		}
	}
}
