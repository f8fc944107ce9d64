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

// Layer is one layer of a finished image: one that steps made, which has an ID, or one of a base image, which Image then describes.
type Layer struct {
	ID    layer.ID
	Image *ImageLayer
}

// ImageLayer is a layer that came from an image, as that image has it.
type ImageLayer struct {
	Blob   ocispec.Descriptor
	DiffID digest.Digest
	// Repository is where it came from, as "docker.io/library/debian"; "" for an image that is not of a registry.
	Repository string
	// Fetch makes sure that the blob is in the store.
	Fetch func(ctx context.Context) error
}

// Blobs gives the blobs of images. It is safe for concurrent use.
type Blobs struct {
	// Store is where they are.
	Store *cas.Store
	// Layers makes those of layers that steps made; nil where there are only images.
	Layers Layers
}

// Layers makes blobs of layers: *snapshot.Job does.
type Layers interface {
	Blob(ctx context.Context, id layer.ID, f blob.Encoding) (blob.Blob, error)
}

// Prepare makes the blob of a layer in the given form before an image is assembled from it, as while later steps run.
func (b *Blobs) Prepare(ctx context.Context, l Layer, f blob.Encoding) error {
	_, err := b.get(ctx, l, f)
	return err
}

// get returns the blob of a layer in the given form. Layers of images stay in the form that they came in.
func (b *Blobs) get(ctx context.Context, l Layer, f blob.Encoding) (blob.Blob, error) {
	if l.Image != nil {
		desc := ocispec.Descriptor{MediaType: ociMediaType(l.Image.Blob.MediaType), Digest: l.Image.Blob.Digest, Size: l.Image.Blob.Size}
		return blob.Blob{Desc: desc, DiffID: l.Image.DiffID}, nil
	}
	return b.Layers.Blob(ctx, l.ID, f)
}

// fetch makes sure that the blob of a layer is in the store.
func (b *Blobs) fetch(ctx context.Context, l Layer) error {
	if l.Image == nil || b.Store.Has(l.Image.Blob) {
		return nil
	}
	return l.Image.Fetch(ctx)
}

// blockSize is how much is read and written at a time.
const blockSize = 1 << 20

// ociMediaType returns OCI's name of a layer's media type for Docker's. A layer that is not to be distributed becomes one that is, as with
// BuildKit: other tools would leave it out when they push the image, while the image has no address from which it could be had.
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

// dockerMediaType returns Docker's name of a layer's media type for OCI's.
func dockerMediaType(t string) (string, error) {
	switch t {
	case ocispec.MediaTypeImageLayerGzip:
		return "application/vnd.docker.image.rootfs.diff.tar.gzip", nil
	case ocispec.MediaTypeImageLayerZstd:
		return "application/vnd.docker.image.rootfs.diff.tar.zstd", nil // containerd's name; Docker's specification has none
	case ocispec.MediaTypeImageLayer:
		return "application/vnd.docker.image.rootfs.diff.tar", nil
	}
	return "", fmt.Errorf("there is no Docker media type for %s: leave out oci-mediatypes=false", t)
}
