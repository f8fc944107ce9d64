package attached

import (
	"context"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/registry/layout"
	"github.com/kilnbuild/kiln/signature"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layout is an OCI layout, whose index.json lists images and their signatures alike.
type Layout struct {
	Layout *layout.Layout
}

// Tagged implements Source.
func (l Layout) Tagged(ctx context.Context, tag string) ([]byte, error) {
	all, err := l.Layout.Entries()
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		// The name may be that of a registry with the tag.
		if name := d.Annotations[ocispec.AnnotationRefName]; name == tag || strings.HasSuffix(name, ":"+tag) {
			return image.Fetched{Fetcher: l.Layout}.Blob(ctx, d)
		}
	}
	return nil, nil
}

// Referrers implements Source. The subjects are not in index.json, so these are bundles of all images.
func (l Layout) Referrers(context.Context, digest.Digest) ([]ocispec.Descriptor, error) {
	all, err := l.Layout.Entries()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(e ocispec.Descriptor) bool { return e.ArtifactType != signature.BundleMediaType }), nil
}

// Manifest implements Source.
func (l Layout) Manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return image.Fetched{Fetcher: l.Layout}.Blob(ctx, desc)
}

// Blob implements Source.
func (l Layout) Blob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	rc, err := l.Layout.Fetch(ctx, "", desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return cas.ReadAll(rc, desc, limit)
}
