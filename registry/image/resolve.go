package image

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source is a source of images: a registry.Client or a layout.Layout.
type Source interface {
	// Resolve finds the image that ref names for a platform and puts its manifest and config, and the indexes that led
	// there, into the store. The errors are *PlatformError when there is none for the platform, *registry.Error from a registry.
	Resolve(ctx context.Context, ref string, platform ocispec.Platform, store *cas.Store) (*Image, error)
	Fetcher
}

// Fetcher gives blobs.
type Fetcher interface {
	// Fetch opens one blob of the image that ref names. The reader ends with io.EOF only if the bytes are desc's.
	Fetch(ctx context.Context, ref string, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// Image is an image that was found, for one platform.
type Image struct {
	// Ref is its name in full.
	Ref string
	// Target is what the name stands for: the image's manifest or an index.
	Target ocispec.Descriptor
	// Desc is the image's manifest, with the platform that an index gives for it.
	Desc ocispec.Descriptor
	// Manifest is the manifest; that of a Docker image has Docker's media types.
	Manifest ocispec.Manifest
	// Config is the image's config as it is: it may have fields of Docker's that OCI's do not know.
	Config []byte
	// DiffIDs are the digests of the layers' uncompressed content, one for each of Manifest.Layers.
	DiffIDs []digest.Digest
	// Platform is what the config says that the image is for.
	Platform ocispec.Platform
	// PlatformMatches reports whether that fits the requested platform. It can be false only if the name stands for a single image, which is
	// used anyway, as Docker does.
	PlatformMatches bool
}

// ReadBlob returns the bytes of a small blob. If the content does not match, the source is asked once more: a registry.Client then asks
// another host.
func ReadBlob(ctx context.Context, src Source, ref string, desc ocispec.Descriptor) ([]byte, error) {
	for last := false; ; last = true {
		rc, err := src.Fetch(ctx, ref, desc)
		if err != nil {
			return nil, err
		}
		data, err := cas.ReadAll(rc, desc, 0)
		rc.Close()
		if _, ok := errors.AsType[*cas.MismatchError](err); !ok || last {
			return data, err
		}
	}
}

// Documents is what Resolve reads from.
type Documents interface {
	// Document returns the bytes of a manifest or index, verified, and the media type that is declared for it.
	Document(ctx context.Context, desc ocispec.Descriptor) ([]byte, string, error)
	// Blob returns the bytes of a config, verified.
	Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
}

// Fetched are Documents whose bytes come from a Fetcher that needs no name, such as an OCI layout, and whose media types are those of their
// descriptors.
type Fetched struct{ Fetcher }

// Document implements Documents.
func (f Fetched) Document(ctx context.Context, desc ocispec.Descriptor) ([]byte, string, error) {
	data, err := f.Blob(ctx, desc)
	return data, desc.MediaType, err
}

// Blob implements Documents.
func (f Fetched) Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > cas.MaxManifest {
		return nil, ErrTooLarge
	}
	rc, err := f.Fetch(ctx, "", desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return cas.ReadAll(rc, desc, 0)
}

// resolver goes from a name's document to the image for one platform.
type resolver struct {
	src    Documents
	ref    string
	want   ocispec.Platform
	store  *cas.Store
	probes int // manifests fetched to find out what they are for
}

// Named is what the name of an image stands for.
type Named struct {
	// Ref is the name in full.
	Ref string
	// Target is the descriptor of Data, a manifest or index; its media type is not looked at.
	Target ocispec.Descriptor
	Data   []byte
	// Declared is the media type that the source declares for Data; "" for none.
	Declared string
}

// Resolve finds the image for a platform in what a name stands for, and puts its manifest and config, and the indexes that led there,
// into the store. The error is a *PlatformError if there is none for the platform.
func Resolve(ctx context.Context, src Documents, n Named, want ocispec.Platform, store *cas.Store) (*Image, error) {
	r := &resolver{src: src, ref: n.Ref, want: want, store: store}
	img, err := r.descend(ctx, n.Target, n.Data, n.Declared, 0)
	if err != nil {
		return nil, err
	}
	doc, err := Parse(n.Data, n.Declared)
	if err != nil {
		return nil, err
	}
	img.Target = n.Target
	img.Target.MediaType = doc.MediaType
	return img, nil
}

// load gets the document of an entry and goes on in it.
func (r *resolver) load(ctx context.Context, desc ocispec.Descriptor, depth int) (*Image, error) {
	if depth > MaxDepth {
		return nil, fetch.Invalid("its indexes lie more than %d deep", MaxDepth)
	}
	data, declared, err := r.src.Document(ctx, desc)
	if err != nil {
		return nil, err
	}
	return r.descend(ctx, desc, data, declared, depth)
}

func (r *resolver) descend(ctx context.Context, desc ocispec.Descriptor, data []byte, declared string, depth int) (*Image, error) {
	doc, err := Parse(data, declared)
	if err != nil {
		return nil, err
	}
	desc.MediaType = doc.MediaType
	if _, err := r.store.Put(desc.MediaType, data); err != nil {
		return nil, err
	}
	if doc.Manifest != nil {
		return r.found(ctx, desc, doc.Manifest)
	}
	fitting, unsaid := Choose(doc.Index.Manifests, r.want)
	if len(fitting) > 0 {
		// If the best one is broken, that is an error: another one would be another image.
		return r.load(ctx, fitting[0], depth+1)
	}
	have := DescribePlatforms(doc.Index.Manifests)
	for _, d := range unsaid {
		if r.probes++; r.probes > maxProbes {
			break
		}
		img, err := r.load(ctx, d, depth+1)
		if other, ok := errors.AsType[*PlatformError](err); ok {
			have = append(have, other.Have...)
			continue
		}
		if err != nil {
			return nil, err
		}
		if img.PlatformMatches {
			return img, nil
		}
		have = append(have, PlatformName(img.Platform))
	}
	return nil, &PlatformError{Ref: r.ref, Want: PlatformName(r.want), Have: have}
}

// found reads the config of a manifest and checks that the two agree.
func (r *resolver) found(ctx context.Context, desc ocispec.Descriptor, m *ocispec.Manifest) (*Image, error) {
	if t := m.Config.MediaType; t != ocispec.MediaTypeImageConfig && t != mediaTypeDockerConfig {
		return nil, fetch.Invalid("it is not a container image: its config is %q", fetch.Quote(t))
	}
	for _, l := range m.Layers {
		if !isLayer(l.MediaType) {
			return nil, fetch.Invalid("layer %s is %q, which is not a tar that kiln can read", l.Digest, fetch.Quote(l.MediaType))
		}
	}
	data, err := r.src.Blob(ctx, m.Config)
	if err != nil {
		return nil, err
	}
	var config struct {
		ocispec.Platform
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, fetch.Invalid("read image config: %w", err)
	}
	img := &Image{Ref: r.ref, Desc: desc, Manifest: *m, Config: data, Platform: config.Platform}
	if n := len(config.RootFS.DiffIDs); n != len(m.Layers) {
		return nil, fetch.Invalid("read image config: it has %d layers and the manifest %d", n, len(m.Layers))
	}
	for _, s := range config.RootFS.DiffIDs {
		d, err := cas.ParseDigest(s)
		if err != nil {
			return nil, fetch.Invalid("read image config: %w", err)
		}
		img.DiffIDs = append(img.DiffIDs, d)
	}
	p := config.Platform
	said := desc.Platform != nil && desc.Platform.OS != "" && desc.Platform.Architecture != ""
	if said && p.OS != "" && p.Architecture != "" {
		if a, b := normal(*desc.Platform), normal(p); a.OS != b.OS || a.Architecture != b.Architecture {
			return nil, fetch.Invalid("manifest %s is listed for %s, and its config is for %s",
				desc.Digest, PlatformName(*desc.Platform), PlatformName(p))
		}
	}
	// An index has decided already, and a config without a platform fits any.
	img.PlatformMatches = said || p.OS == "" && p.Architecture == "" || Fit(r.want, p) > 0
	if _, err := r.store.Put(m.Config.MediaType, data); err != nil {
		return nil, err
	}
	return img, nil
}
