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

// bases adds to own what is in the layers of the images that the build stands on, as far as that is known here, and returns what an export
// is to be sent for it.
func (x *Exporter) bases(ctx context.Context, export int, own *pack.Pack) ([]*made, error) {
	e := x.exports[export]
	var all []*made
	for _, id := range x.Bases() {
		b, known := x.cache.imports.Base(id)
		files, err := x.config.Layers.Manifest(ctx, id)
		m := &made{}
		switch {
		case known && (e.Key == nil || err != nil):
			m.open = func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
				return x.cache.imports.Open(ctx, id, d)
			}
			if x.cache.imports.BaseFrom(id, e.Repository.String(), e.Tag) {
				m.open = nil
			}
		case err == nil:
			m.open = func(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) { return x.config.Store.Open(d) }
			b, err = x.baseOf(ctx, e, id, files)
			if err != nil {
				return nil, err
			}
		default:
			continue // nothing of it was needed
		}
		b.Used = time.Now().Truncate(time.Second)
		own.AddBase(b)
		if _, keeps := e.Repository.(remote.Keeper); m.open != nil || keeps {
			m.blobs = []ocispec.Descriptor{b.Manifest}
		}
		all = append(all, m)
	}
	return all, ctx.Err()
}

// baseOf returns what an export gets for a layer of an image whose manifest is here.
func (x *Exporter) baseOf(ctx context.Context, e Export, id layer.ID, files *layer.Manifest) (pack.Base, error) {
	desc, err := x.pack(ctx, files)
	b := pack.Base{ID: id, Manifest: desc}
	if err == nil && e.Key != nil {
		err = b.Sign(e.Key)
	}
	return b, err
}
