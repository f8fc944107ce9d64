package cas

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types of manifests (distribution, docs/content/spec/manifest-v2-2.md).
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// IsIndex reports whether a media type is that of an OCI index or Docker manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == MediaTypeDockerIndex
}

// IsManifest reports whether a media type is that of an OCI or Docker image manifest.
func IsManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == MediaTypeDockerManifest
}

// refs are the blobs that a manifest or index refers to. The type can represent both.
type refs struct {
	MediaType string
	Manifests []ocispec.Descriptor
	Config    *ocispec.Descriptor
	Layers    []ocispec.Descriptor
}

// refs reads a manifest or index. It returns false if that fails.
func (s *Store) refs(desc ocispec.Descriptor) (m refs, ok bool) {
	data, err := s.ReadAll(desc, 0)
	return m, err == nil && json.Unmarshal(data, &m) == nil
}

// Reached is the set of blobs and layers of some images.
type Reached struct {
	// Blobs maps the digest of each blob to its size according to the image, whether or not the blob exists.
	Blobs map[digest.Digest]int64
	// DiffIDs are the diff IDs of layers, in hexadecimal.
	DiffIDs map[string]bool
}

// newReached returns an empty Reached.
func newReached() *Reached {
	return &Reached{Blobs: map[digest.Digest]int64{}, DiffIDs: map[string]bool{}}
}

// reach adds to r everything reachable from a manifest, index or other blob. A blob that does not exist, such as one for another
// platform, reaches nothing else.
func (s *Store) reach(r *Reached, desc ocispec.Descriptor) {
	if _, ok := r.Blobs[desc.Digest]; ok {
		return
	}
	r.Blobs[desc.Digest] = desc.Size
	if !IsIndex(desc.MediaType) && !IsManifest(desc.MediaType) {
		return
	}
	m, ok := s.refs(desc)
	if !ok {
		return
	}
	for _, d := range slices.Concat(m.Manifests, m.Layers) {
		s.reach(r, d)
	}
	if m.Config == nil {
		return
	}
	s.reach(r, *m.Config)
	var config ocispec.Image
	if data, err := s.ReadAll(*m.Config, 0); err == nil && json.Unmarshal(data, &config) == nil {
		for _, d := range config.RootFS.DiffIDs {
			r.DiffIDs[d.Encoded()] = true
		}
	}
}

// Named describes the images that have a name.
type Named struct {
	Reached
	// Images is the number of images.
	Images int
	// Size is the disk usage of their blobs in bytes.
	Size int64
}

// Named measures the images that have a name.
func (s *Store) Named(ctx context.Context) (*Named, error) {
	images, err := s.Images()
	if err != nil {
		return nil, err
	}
	n := &Named{Reached: *newReached()}
	seen := map[digest.Digest]bool{}
	for _, img := range images {
		if err := ctxio.Ended(ctx); err != nil {
			return nil, err
		}
		if img.Name != "" && !seen[img.Desc.Digest] {
			seen[img.Desc.Digest] = true
			s.reach(&n.Reached, img.Desc)
		}
	}
	n.Images = len(seen)
	for d := range n.Blobs {
		n.Size += s.diskSize(d)
	}
	return n, nil
}
