package exporter

import (
	"context"
	"fmt"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/blob"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layer is a layer of a finished image: either one made by a step, which has an ID, or one of a base image, described by Image.
type Layer struct {
	ID    layer.ID
	Image *ImageLayer
}

// ImageLayer is a layer of a base image, as described by that image.
type ImageLayer struct {
	Blob   ocispec.Descriptor
	DiffID digest.Digest
	// Repository is the repository it came from, such as "docker.io/library/debian", or "" if the image is not from a registry.
	Repository string
	// Fetch fetches the blob into the store, unless it is there.
	Fetch func(ctx context.Context) error
}

// Blobs provides the blobs of images. It is safe for concurrent use.
type Blobs struct {
	// Store is the store that contains them.
	Store *cas.Store
	// Layers makes the blobs of layers made by steps. It may be nil if there are no such layers.
	Layers Layers
}

// Layers gives the blobs of layers that steps made.
type Layers interface {
	// Blob returns the blob of a layer in an encoding. It is in the store, or elsewhere.
	Blob(ctx context.Context, id layer.ID, f blob.Encoding) (blob.Blob, error)
	// Fetch brings a blob that Blob returned for a layer into the store, unless it is there.
	Fetch(ctx context.Context, id layer.ID, desc ocispec.Descriptor) error
	// Repository returns the repository that has the blobs of a layer, such as "docker.io/library/app", or "" for none.
	Repository(id layer.ID) string
}

// Prepare makes the blob of a layer in the given form before an image is assembled from it, for example while later steps run.
func (b *Blobs) Prepare(ctx context.Context, l Layer, f blob.Encoding) error {
	_, err := b.get(ctx, l, f)
	return err
}

// get returns the blob of a layer in the given form. Layers of base images keep their form.
func (b *Blobs) get(ctx context.Context, l Layer, f blob.Encoding) (blob.Blob, error) {
	if l.Image != nil {
		desc := ocispec.Descriptor{MediaType: ociMediaType(l.Image.Blob.MediaType), Digest: l.Image.Blob.Digest, Size: l.Image.Blob.Size}
		return blob.Blob{Desc: desc, DiffID: l.Image.DiffID}, nil
	}
	return b.Layers.Blob(ctx, l.ID, f)
}

// Bring brings desc, the blob of a layer, into the store, unless it is there.
func (b *Blobs) Bring(ctx context.Context, l Layer, desc ocispec.Descriptor) error {
	if b.Store.Has(desc) {
		return nil
	}
	if l.Image == nil {
		return b.Layers.Fetch(ctx, l.ID, desc)
	}
	return l.Image.Fetch(ctx)
}

// Repository returns the repository that has the blob of a layer, or "" for none.
func (b *Blobs) Repository(l Layer) string {
	if l.Image == nil {
		return b.Layers.Repository(l.ID)
	}
	return l.Image.Repository
}

// blockSize is the number of bytes read and written at a time.
const blockSize = 1 << 20

// ociMediaType converts the media type of a layer from Docker's to OCI's. As in BuildKit, a non-distributable layer becomes a
// distributable one: other tools would skip it when they push the image, although the image has no URL from which it could be
// fetched.
func ociMediaType(t string) string {
	switch t {
	case "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip":
		return ocispec.MediaTypeImageLayerGzip
	case "application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":
		return ocispec.MediaTypeImageLayerZstd
	case "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar":
		return ocispec.MediaTypeImageLayer
	}
	return t
}

// Docker's media types: docker image manifest version 2, schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// dockerMediaType converts the media type of a layer from OCI's to Docker's.
func dockerMediaType(t string) (string, error) {
	switch t {
	case ocispec.MediaTypeImageLayerGzip:
		return "application/vnd.docker.image.rootfs.diff.tar.gzip", nil
	case ocispec.MediaTypeImageLayerZstd:
		return "application/vnd.docker.image.rootfs.diff.tar.zstd", nil // containerd's name; Docker's specification has none
	case ocispec.MediaTypeImageLayer:
		return "application/vnd.docker.image.rootfs.diff.tar", nil
	}
	return "", fmt.Errorf("no Docker media type exists for %s: remove oci-mediatypes=false", t)
}
