package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/ctxio"
)

// imageError says that a tag holds an image, which may have an inline cache. It wraps ErrNoCache.
type imageError struct{ kind string }

func (e *imageError) Error() string { return ErrNoCache.Error() + ", but " + e.kind }

func (e *imageError) Unwrap() error { return ErrNoCache }

// imageRepository is a Repository that may hold images.
type imageRepository interface {
	// manifest returns the manifest that an index names.
	manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
}

// maxImages bounds how many images of an index are asked for their caches.
const maxImages = 16

// readInline returns the inline caches of an image, or of those of an index together.
func readInline(ctx context.Context, r Repository, data []byte) (*Head, error) {
	h := &Head{Pack: &pack.Pack{}, digest: digest.FromBytes(data), inline: true}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, &DamagedError{err}
	}
	manifests := [][]byte{data}
	if len(index.Manifests) > 0 {
		var err error
		if manifests, err = children(ctx, r, index); err != nil {
			return nil, err
		}
	}
	var mu sync.Mutex
	found := false
	g, gctx := errgroup.WithContext(ctx)
	for _, m := range manifests {
		g.Go(func() error {
			p, err := readImage(gctx, r, m)
			if err != nil || p == nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			found = true
			h.Pack.Add(p)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if !found {
		return nil, &imageError{"an image without one, which --cache-to type=inline writes"}
	}
	return h, nil
}

// children returns the manifests of the images that an index has.
func children(ctx context.Context, r Repository, index ocispec.Index) ([][]byte, error) {
	images, ok := r.(imageRepository)
	if !ok {
		return nil, ErrNoCache
	}
	var all []ocispec.Descriptor
	for _, m := range index.Manifests {
		isImage := m.MediaType == ocispec.MediaTypeImageManifest || m.MediaType == "application/vnd.docker.distribution.manifest.v2+json"
		if isImage && (m.Platform == nil || m.Platform.OS != "unknown") { // as attestations are
			all = append(all, m)
		}
	}
	if len(all) == 0 {
		return nil, &imageError{"an index of something else, such as a cache of BuildKit, which kiln does not read"}
	}
	if len(all) > maxImages {
		return nil, fmt.Errorf("it is an index of %d images, and those of at most %d are asked for a cache", len(all), maxImages)
	}
	manifests := make([][]byte, len(all))
	g, gctx := errgroup.WithContext(ctx)
	for i, m := range all {
		g.Go(func() (err error) {
			manifests[i], err = images.manifest(gctx, m)
			if err == nil && digest.FromBytes(manifests[i]) != m.Digest {
				err = &DamagedError{fmt.Errorf("its manifest %s is another", m.Digest)}
			}
			return err
		})
	}
	return manifests, g.Wait()
}

// readImage returns the inline cache of an image; nil if it has none.
func readImage(ctx context.Context, r Repository, data []byte) (*pack.Pack, error) {
	if _, err := parse(data); !errors.As(err, new(*imageError)) {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, &DamagedError{err}
	}
	config, err := readAll(ctx, r, m.Config)
	if err != nil {
		return nil, err
	}
	if !pack.HasField(config, pack.InlineField) {
		if pack.HasField(config, "moby.buildkit.cache.v0") {
			return nil, &imageError{"an image with a cache of BuildKit, which kiln does not read"}
		}
		return nil, nil
	}
	p, err := pack.DecodeInline(config, m.Layers)
	if err != nil && !errors.Is(err, pack.ErrVersion) {
		err = &DamagedError{err}
	}
	return p, err
}

// readAll returns a blob of at most maxManifest bytes.
func readAll(ctx context.Context, r Repository, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Digest.Validate() != nil || desc.Digest.Algorithm() != digest.SHA256 || desc.Size < 0 || desc.Size > maxManifest {
		return nil, &DamagedError{fmt.Errorf("its manifest names %s of %d bytes, and the limit is %d", desc.Digest, desc.Size, maxManifest)}
	}
	desc.Data = nil
	blob, err := r.Open(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(ctxio.Reader(ctx, blob))
}
