package registry

import (
	"context"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/registry/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Document returns the manifest or index that ref names, as its registry has it, and its descriptor. One that the store has is not
// requested again; nothing is put there. See Client.Resolve for mirrors and short names.
func (c *Client) Document(ctx context.Context, ref string, store *cas.Store) (ocispec.Descriptor, []byte, error) {
	r, err := imagename.Parse(ref)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	src := &remote{client: c, ref: r, store: store}
	named, err := src.target(ctx)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	doc, err := image.Parse(named.Data, named.Declared)
	if err != nil {
		return ocispec.Descriptor{}, nil, src.explain(err)
	}
	desc := named.Target
	desc.MediaType = doc.MediaType
	return desc, named.Data, nil
}
