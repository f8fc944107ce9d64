package registry

import (
	"context"
	"errors"
	"io"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/registry/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// maxSources is how many hosts Download asks for a blob when one after another sends other content.
const maxSources = 3

// Pull finds the image that ref names for a platform and brings it whole into the store, layers side by side. It gives the
// image no name there. What the store has already is not fetched.
func Pull(ctx context.Context, src image.Source, ref string, platform ocispec.Platform, store *cas.Store) (*image.Image, error) {
	img, err := src.Resolve(ctx, ref, platform, store)
	if err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, layer := range img.Manifest.Layers {
		g.Go(func() error { return Download(ctx, src, ref, layer, store) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return img, nil
}

// Download brings one blob into the store unless it is there. Of several processes and goroutines that want the same blob
// one fetches it and the others wait.
func Download(ctx context.Context, src image.Fetcher, ref string, desc ocispec.Descriptor, store *cas.Store) (err error) {
	d, err := cas.ParseDigest(string(desc.Digest))
	if err != nil {
		return err
	}
	if store.Has(desc) {
		return nil
	}
	l, err := lock.Acquire(ctx, filepath.Join(store.Root(), rootdir.Locks, "blob-"+d.Encoded()), false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Remove()) }()
	if store.Has(desc) {
		return nil
	}
	for try := 1; ; try++ {
		err := download(ctx, src, ref, desc, store)
		if _, ok := errors.AsType[*cas.MismatchError](err); !ok || try == maxSources {
			return err
		}
	}
}

func download(ctx context.Context, src image.Fetcher, ref string, desc ocispec.Descriptor, store *cas.Store) error {
	w, err := store.CreateVerified(ctx, desc.Digest)
	if err != nil {
		return err
	}
	defer w.Close()
	r, err := src.Fetch(ctx, ref, desc)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	_, err = w.Commit(desc.Digest, desc.Size)
	return err
}
