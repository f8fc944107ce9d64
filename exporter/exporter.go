// Package exporter creates images from finished root file systems and their configs, and writes them to the store, to files and
// to directories. It does not know how they were built.
package exporter

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/snapshot/blob"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Image is a finished build for one platform.
type Image struct {
	// Config is the image config except RootFS, which is computed from the layers. Its history has one non-empty entry per layer.
	Config dockerspec.DockerOCIImage
	// Layers are the layers, lowest first.
	Layers []Layer
	// Platform is the platform of the image, such as "linux/arm64".
	Platform string
	// Inline returns the cache that is written into the config, as JSON, for layers in an encoding; none for nil. It may itself be nil.
	Inline func(blob.Encoding) ([]byte, error)
}

// Form describes how an image is encoded.
type Form struct {
	Layers blob.Encoding
	// Docker selects Docker's media types instead of OCI's. They do not support annotations.
	Docker      bool
	Annotations []Annotation
	// Index makes an index of one image as well.
	Index bool
}

// Assembled is an image, or an index of several or with attestations, whose manifests and configs are in the store.
type Assembled struct {
	// Desc describes the manifest of a single image, or the index.
	Desc ocispec.Descriptor
	// Manifests are the images' manifests, one per platform.
	Manifests []Manifest
	// Attestations are manifests of statements about them.
	Attestations []Manifest
}

// Created says when the image was made, unless annotations say so already.
func (a *Assembled) Created(at time.Time) {
	annotations := map[string]string{ocispec.AnnotationCreated: at.UTC().Format(time.RFC3339)}
	maps.Copy(annotations, a.Desc.Annotations)
	a.Desc.Annotations = annotations
}

// Manifest is one image's manifest.
type Manifest struct {
	Desc     ocispec.Descriptor
	Manifest ocispec.Manifest
	Layers   []Layer
}

// Assemble makes an image, or an index of several. See Manifests and Join.
func (b *Blobs) Assemble(ctx context.Context, images []Image, f Form) (*Assembled, error) {
	manifests, err := b.Manifests(ctx, images, f)
	if err != nil {
		return nil, err
	}
	return b.Join(manifests, nil, f)
}

// Manifests makes the layers' blobs in the given form concurrently, and writes configs and manifests to the store. The output is
// deterministic. It does not fetch blobs of base images.
func (b *Blobs) Manifests(ctx context.Context, images []Image, f Form) ([]Manifest, error) {
	all := make([]Manifest, len(images))
	for i, img := range images {
		m, err := b.manifest(ctx, img, f)
		if err != nil {
			return nil, err
		}
		all[i] = *m
	}
	return all, nil
}

// Join returns an image alone as it is, unless the form wants an index, and otherwise an index of images and the manifests of their
// attestations, which is written to the store.
func (b *Blobs) Join(manifests, attestations []Manifest, f Form) (*Assembled, error) {
	a := &Assembled{Manifests: manifests, Attestations: attestations}
	if len(manifests) == 1 && len(attestations) == 0 && !f.Index {
		a.Desc = manifests[0].Desc
		return a, nil
	}
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Annotations: on(f.Annotations, OnIndex, ""),
	}
	if f.Docker {
		index.MediaType = dockerIndex
	}
	for _, m := range slices.Concat(manifests, attestations) {
		index.Manifests = append(index.Manifests, m.Desc)
	}
	desc, err := b.putJSON(index.MediaType, index)
	desc.Annotations = on(f.Annotations, OnIndexDescriptor, "")
	a.Desc = desc
	return a, err
}

func (b *Blobs) manifest(ctx context.Context, img Image, f Form) (*Manifest, error) {
	// As BuildKit has it: what is built on nothing has no layers of Windows' form.
	f.Layers.Windows = img.Config.OS == "windows" && len(img.Layers) > 0 && img.Layers[0].Image != nil
	blobs := make([]blob.Blob, len(img.Layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2) // each compresses on all cores already
	for i, l := range img.Layers {
		g.Go(func() (err error) {
			blobs[i], err = b.get(gctx, l, f.Layers)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	config := img.Config
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Layers:      []ocispec.Descriptor{},
		Annotations: on(f.Annotations, OnManifest, img.Platform),
	}
	configType := ocispec.MediaTypeImageConfig
	if f.Docker {
		m.MediaType, configType = dockerManifest, dockerConfig
	}
	for i, l := range blobs {
		if f.Layers.Rewrite && img.Layers[i].Image == nil && !f.Docker {
			l.Desc.Annotations = map[string]string{rewrittenAnnotation: strconv.FormatInt(f.Layers.Epoch, 10)}
		}
		if f.Docker {
			var err error
			if l.Desc.MediaType, err = dockerMediaType(l.Desc.MediaType); err != nil {
				return nil, err
			}
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		m.Layers = append(m.Layers, l.Desc)
	}
	var err error
	if m.Config, err = b.putConfig(configType, config, img, f.Layers); err != nil {
		return nil, err
	}
	desc, err := b.putJSON(m.MediaType, m)
	if err != nil {
		return nil, err
	}
	desc.Annotations = on(f.Annotations, OnManifestDescriptor, img.Platform)
	desc.Platform = &ocispec.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant, OSVersion: config.OSVersion}
	return &Manifest{Desc: desc, Manifest: m, Layers: img.Layers}, nil
}

// cachedConfig is a config with an inline cache.
type cachedConfig struct {
	dockerspec.DockerOCIImage
	// Cache has the name of pack.InlineField.
	Cache json.RawMessage `json:"kiln.cache.v1"`
}

func (b *Blobs) putConfig(mediaType string, config dockerspec.DockerOCIImage, img Image, f blob.Encoding) (ocispec.Descriptor, error) {
	if img.Inline == nil {
		return b.putJSON(mediaType, config)
	}
	cache, err := img.Inline(f)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("make the inline cache: %w", err)
	}
	if cache == nil {
		return b.putJSON(mediaType, config)
	}
	return b.putJSON(mediaType, cachedConfig{config, cache})
}

func (b *Blobs) putJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	if len(data) > cas.MaxManifest {
		// Neither kiln nor most registries would accept it.
		what := mediaType
		if mediaType == ocispec.MediaTypeImageConfig || mediaType == dockerConfig {
			what = "configuration, which has environment, labels and history,"
		}
		return ocispec.Descriptor{}, fmt.Errorf("the image's %s has %d bytes; the limit is %d MiB", what, len(data), cas.MaxManifest>>20)
	}
	return b.Store.Put(mediaType, data)
}

// Here reports whether all blobs of the image are in the store.
func (b *Blobs) Here(a *Assembled) bool {
	for _, m := range a.Manifests {
		for _, l := range m.Manifest.Layers {
			if !b.Store.Has(l) {
				return false
			}
		}
	}
	return true
}

// Fetch fetches all blobs of the image into the store.
func (b *Blobs) Fetch(ctx context.Context, a *Assembled) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, m := range a.Manifests {
		for i, l := range m.Layers {
			g.Go(func() error { return b.Bring(gctx, l, m.Manifest.Layers[i]) })
		}
	}
	return g.Wait()
}

// entryTime is the time of tar entries that are not part of an image, so that archives of the same image are identical.
var entryTime = time.Unix(0, 0)

// Recompress returns the image or index with all uncompressed layers compressed, and everything that refers to them updated. All
// of it is in the store. An index with attestations is returned as it is: they are about the images that it has.
func (b *Blobs) Recompress(ctx context.Context, desc ocispec.Descriptor, c blob.Compression) (ocispec.Descriptor, error) {
	data, err := b.Store.ReadAll(desc, 0)
	if err != nil {
		return desc, err
	}
	if desc.MediaType == ocispec.MediaTypeImageIndex || desc.MediaType == dockerIndex {
		var index ocispec.Index
		if err := json.Unmarshal(data, &index); err != nil {
			return desc, fmt.Errorf("read index %s: %w", desc.Digest, err)
		}
		if slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool { return !attestation.IsImage(d) }) {
			return desc, nil
		}
		changed := false
		for i, m := range index.Manifests {
			small, err := b.Recompress(ctx, m, c)
			if err != nil {
				return desc, err
			}
			changed = changed || small.Digest != m.Digest
			index.Manifests[i] = small
		}
		if !changed {
			return desc, nil
		}
		return b.putJSON(desc.MediaType, index)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return desc, fmt.Errorf("read manifest %s: %w", desc.Digest, err)
	}
	changed := false
	for i, l := range m.Layers {
		if l.MediaType != ocispec.MediaTypeImageLayer {
			continue
		}
		small, err := (blob.Store{CAS: b.Store}).Compress(ctx, l, c, nil)
		if err != nil {
			return desc, err
		}
		m.Layers[i], changed = small.Desc, true
	}
	if !changed {
		return desc, nil
	}
	small, err := b.putJSON(m.MediaType, m)
	small.Platform, small.Annotations = desc.Platform, desc.Annotations
	return small, err
}
