package caching

import (
	"context"
	"io"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/internal/layer"
)

// Layers of images are not exported, since the images' registries have them. But what is in them is: with it a build elsewhere copies files
// onto an image without fetching it.

// bases returns the layers of images of which it is known what is in them, here or in an import, as an export gets them.
func (x *Exporter) bases(ctx context.Context, export int) []exported {
	var all []exported
	for _, id := range x.Bases() {
		_, said := x.cache.imports.Base(id)
		if !said {
			_, err := x.config.Layers.Manifest(ctx, id)
			said = err == nil
		}
		if said {
			all = append(all, exported{export, id, true})
		}
	}
	return all
}

// sendBases sends an export what is in the layers of images, as far as that is known.
func (x *Exporter) sendBases(ctx context.Context, export int) {
	for _, of := range x.bases(ctx, export) {
		_ = x.send(ctx, of) // a failure shows again when the cache is published
	}
}

// addBases adds to own what is in the layers of images, and returns what an export is to be sent for it.
func (x *Exporter) addBases(ctx context.Context, export int, own *pack.Pack) ([]exported, error) {
	all := x.bases(ctx, export)
	for _, of := range all {
		m, err := x.layer(ctx, of)
		if err != nil {
			return nil, err
		}
		b := m.base
		if _, still := x.cache.imports.Base(of.id); m.said && !still {
			continue // it was wrong
		}
		b.Used = time.Now().Truncate(time.Second)
		own.AddBase(b)
	}
	return all, nil
}

// makeBase makes what an export gets for a layer of an image. What an import has said of it is handed on, but to an export that is signed,
// if it is known here.
func (x *Exporter) makeBase(ctx context.Context, e Export, id layer.ID) (*made, error) {
	b, said := x.cache.imports.Base(id)
	files, err := x.config.Layers.Manifest(ctx, id)
	if said && (e.Key == nil || err != nil) {
		m := &made{base: b, said: true, blobs: []ocispec.Descriptor{b.Manifest}}
		if !x.cache.imports.BaseFrom(id, e.Repository.String(), e.Tag) {
			m.open = func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
				return x.cache.imports.Open(ctx, id, d)
			}
		} else if _, keeps := e.Repository.(remote.Keeper); !keeps {
			m.blobs = nil
		}
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	b = pack.Base{ID: id}
	if b.Manifest, err = x.pack(ctx, files); err != nil {
		return nil, err
	}
	if e.Key != nil {
		if err := b.Sign(e.Key); err != nil {
			return nil, err
		}
	}
	open := func(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) { return x.config.Store.Open(d) }
	return &made{base: b, blobs: []ocispec.Descriptor{b.Manifest}, open: open}, nil
}
