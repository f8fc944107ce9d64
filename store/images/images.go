// Package images lists, names, pulls and pushes the images of a root directory.
package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/store"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Images are the images of a root directory. Its methods may be called from several goroutines.
type Images struct {
	root   *store.Root
	store  *cas.Store
	client *registry.Client
}

// New returns the images of a root directory, which the client pulls and pushes.
func New(root *store.Root, client *registry.Client) *Images {
	return &Images{root, root.Images, client}
}

// Job returns the same images for a job, which relies on those that it works with by its own view of the image store: see cas.Store.Job.
func (set *Images) Job(store *cas.Store) *Images { return &Images{set.root, store, set.client} }

// Info describes an image of the store.
type Info struct {
	// Names are its names in full; none for an image that has lost them.
	Names []string
	// ID is the digest of the config, or of the index for several platforms; Digest that of the manifest or index.
	ID     string
	Digest string
	// Created is what the config says; the zero time where it says nothing.
	Created time.Time
	// Size is what the layers' blobs take in the store in bytes: those of a base image are compressed as it came, others are not.
	Size int64
	// Labels are those of the config; of several platforms those of the last one.
	Labels map[string]string
	// Platforms are what it runs on: "linux/amd64".
	Platforms []string
	// Parts are its images for one platform each, in the order of Platforms.
	Parts []Part
}

// Part is an image for one platform.
type Part struct {
	Platform string
	// Digest is that of the manifest.
	Digest string
	// Size is as in Info.
	Size int64
}

// manifestAlone reads a manifest.
func (set *Images) manifestAlone(desc ocispec.Descriptor) (m ocispec.Manifest, err error) {
	data, err := set.store.ReadAll(desc, 0)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("read manifest %s: %w", desc.Digest, err)
	}
	return m, nil
}

// manifestOf reads a manifest of an image and its config.
func (set *Images) manifestOf(desc ocispec.Descriptor) (m ocispec.Manifest, config dockerspec.DockerOCIImage, err error) {
	if m, err = set.manifestAlone(desc); err != nil {
		return m, config, err
	}
	data, err := set.store.ReadAll(m.Config, 0)
	if err != nil {
		return m, config, err
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return m, config, fmt.Errorf("read config %s: %w", m.Config.Digest, err)
	}
	return m, config, nil
}

// manifests returns the manifests of the images that a manifest or index means.
func (set *Images) manifests(desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	all, err := set.contents(desc)
	return slices.DeleteFunc(all, func(d ocispec.Descriptor) bool { return !attestation.IsImage(d) }), err
}

// contents returns the manifests of an index that the store has, those of attestations among them; a manifest is its own.
func (set *Images) contents(desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if !cas.IsIndex(desc.MediaType) {
		return []ocispec.Descriptor{desc}, nil
	}
	data, err := set.store.ReadAll(desc, 0)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("read index %s: %w", desc.Digest, err)
	}
	var out []ocispec.Descriptor
	for _, m := range index.Manifests {
		// An index that was pulled for one platform has only that.
		if cas.IsManifest(m.MediaType) && set.store.Has(m) {
			out = append(out, m)
		}
	}
	return out, nil
}

// hold keeps others from pruning the blobs of an image, if it should lose its names, before this process ends. It is an error
// if some are not there.
func (set *Images) hold(desc ocispec.Descriptor) error {
	all, err := set.contents(desc)
	if err != nil {
		return err
	}
	blobs := []ocispec.Descriptor{desc}
	for _, d := range all {
		m, err := set.manifestAlone(d)
		if err != nil {
			return err
		}
		blobs = append(append(blobs, d, m.Config), m.Layers...)
	}
	for _, d := range blobs {
		if !set.store.Has(d) {
			return fmt.Errorf("the store has no blob %s of the image", d.Digest)
		}
	}
	return nil
}

// info describes an image without its names.
func (set *Images) info(desc ocispec.Descriptor) (Info, error) {
	info := Info{Digest: desc.Digest.String(), ID: desc.Digest.String()}
	all, err := set.manifests(desc)
	if err != nil {
		return info, err
	}
	for _, d := range all {
		m, config, err := set.manifestOf(d)
		if err != nil {
			return info, err
		}
		if !cas.IsIndex(desc.MediaType) {
			info.ID = m.Config.Digest.String()
		}
		if config.Created != nil && config.Created.After(info.Created) {
			info.Created = *config.Created
		}
		info.Labels = config.Config.Labels
		p := llb.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}
		part := Part{Platform: p.String(), Digest: d.Digest.String()}
		for _, l := range m.Layers {
			part.Size += l.Size
		}
		info.Size += part.Size
		info.Platforms, info.Parts = append(info.Platforms, part.Platform), append(info.Parts, part)
	}
	return info, nil
}

// find finds the manifest of an image and its config. Of an image for several platforms it is that for one; "" is the host's, or the first.
func (set *Images) find(ctx context.Context, name, platform string) (m ocispec.Manifest, config dockerspec.DockerOCIImage, err error) {
	found, err := set.Find(ctx, name, platform)
	return found.Manifest, found.Config, err
}

// Found is an image of the store for one platform.
type Found struct {
	// Digest is that of the manifest.
	Digest   digest.Digest
	Manifest ocispec.Manifest
	Config   dockerspec.DockerOCIImage
}

// Find finds an image by a name, full or short, by its digest or ID, or by the first digits of these. Of an image for several platforms it
// is that for one; "" is the host's, or the first. Errors are *cas.NotFoundError and *image.PlatformError, among others.
func (set *Images) Find(ctx context.Context, name, platform string) (f Found, err error) {
	img, err := set.lookup(ctx, name)
	if err != nil {
		return f, err
	}
	all, err := set.manifests(img.Desc)
	if err != nil {
		return f, err
	}
	if len(all) == 0 {
		return f, &cas.NotFoundError{Ref: name}
	}
	desc, err := set.choose(all, name, platform)
	if platform == "" && errors.As(err, new(*image.PlatformError)) {
		desc, err = all[0], nil
	}
	if err != nil {
		return f, err
	}
	f.Digest = desc.Digest
	f.Manifest, f.Config, err = set.manifestOf(desc)
	return f, err
}

// List returns the images, the newest first.
func (set *Images) List(ctx context.Context) ([]Info, error) {
	all, err := set.store.Images()
	if err != nil {
		return nil, err
	}
	var out []Info
	byDigest := map[string]int{}
	for _, img := range all {
		if err := ctxio.Ended(ctx); err != nil {
			return nil, err
		}
		i, ok := byDigest[img.Desc.Digest.String()]
		if !ok {
			info, err := set.info(img.Desc)
			if err != nil {
				if _, lost := set.store.Lookup(img.Desc.Digest.String()); errors.As(lost, new(*cas.NotFoundError)) {
					continue // it was removed meanwhile
				}
				return nil, fmt.Errorf("image %s: %w", img.Name, err)
			}
			i = len(out)
			byDigest[info.Digest] = i
			out = append(out, info)
		}
		if img.Name != "" {
			out[i].Names = append(out[i].Names, img.Name)
		}
	}
	slices.SortStableFunc(out, func(x, y Info) int { return y.Created.Compare(x.Created) })
	return out, nil
}

// fullID is how many digits an ID or digest has.
const fullID = 64

// lookup finds an image of the store by a name, full or short, by its digest or its id, or by the first digits of these. A whole id or
// digest never means a name.
func (set *Images) lookup(ctx context.Context, name string) (cas.Image, error) {
	digits := strings.TrimPrefix(name, "sha256:")
	if strings.Trim(digits, "0123456789abcdef") != "" {
		digits = ""
	}
	if len(digits) == fullID {
		return set.byID(ctx, name, digits)
	}
	if ref, err := imagename.Parse(name); err == nil {
		if img, err := set.store.Lookup(ref.String()); err == nil {
			return img, nil
		}
	}
	img, err := set.store.Lookup(name)
	if !errors.As(err, new(*cas.NotFoundError)) || len(digits) < 4 {
		return img, err
	}
	return set.byID(ctx, name, digits)
}

// byID finds an image by its whole digest, or by the first digits of its id.
func (set *Images) byID(ctx context.Context, name, digits string) (cas.Image, error) {
	all, err := set.store.Images()
	if err != nil {
		return cas.Image{}, err
	}
	var found []cas.Image
	for _, candidate := range all {
		if err := ctxio.Ended(ctx); err != nil {
			return cas.Image{}, err
		}
		if candidate.Desc.Digest == digest.Digest("sha256:"+digits) {
			return candidate, nil
		}
		info, infoErr := set.info(candidate.Desc)
		if infoErr == nil && strings.HasPrefix(strings.TrimPrefix(info.ID, "sha256:"), digits) &&
			!slices.ContainsFunc(found, func(x cas.Image) bool { return x.Desc.Digest == candidate.Desc.Digest }) {
			found = append(found, candidate)
		}
	}
	switch len(found) {
	case 0:
		return cas.Image{}, &cas.NotFoundError{Ref: name}
	case 1:
		return found[0], nil
	}
	return cas.Image{}, fmt.Errorf("%d images have an id that begins with %s: give more digits", len(found), digits)
}

// Forget removes all images without a name from the list and returns their digests. Their blobs stay until the root directory is pruned.
func (set *Images) Forget(ctx context.Context) ([]digest.Digest, error) {
	all, err := set.store.Images()
	if err != nil {
		return nil, err
	}
	var gone []digest.Digest
	for _, img := range all {
		if err := ctxio.Ended(ctx); err != nil {
			return gone, err
		}
		if img.Name != "" {
			continue
		}
		forgotten, err := set.store.Forget(img.Desc.Digest)
		if err != nil {
			return gone, err
		}
		if forgotten {
			gone = append(gone, img.Desc.Digest)
		}
	}
	return gone, nil
}

// Tag gives an image of the store a further name.
func (set *Images) Tag(ctx context.Context, src, dst string) error {
	img, err := set.lookup(ctx, src)
	if err != nil {
		return err
	}
	ref, err := imagename.Parse(dst)
	if err != nil {
		return &input.Error{Err: err}
	}
	if ref.Digest != "" {
		return &input.Error{Err: fmt.Errorf("tag %s: a name for an image has no digest", dst)}
	}
	if err := set.hold(img.Desc); err != nil {
		return fmt.Errorf("tag %s: %w", dst, err)
	}
	return set.store.Tag(ref.String(), img.Desc)
}

// Remove takes a name from an image. An id takes them all, and the image with them. Blobs and layers stay: they are the
// cache's.
func (set *Images) Remove(ctx context.Context, name string) error {
	img, err := set.lookup(ctx, name)
	if err != nil {
		return err
	}
	if ref, err := imagename.Parse(name); err == nil && ref.String() == img.Name {
		return set.store.Untag(img.Name)
	}
	return set.store.Drop(img.Desc)
}
