// Package remote keeps caches where other machines find them: it reads and publishes packs in repositories such as registries, and fetches
// what they refer to. It does not know how a build uses a record, nor what is in a layer.
package remote

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Repository holds blobs by digest and manifests by tag: a registry's repository, a directory or a bucket. Nothing that it returns is
// believed. It is safe for concurrent use.
type Repository interface {
	// String names the repository as the user did, for messages.
	String() string
	// Get returns the manifest of a tag; the error wraps fs.ErrNotExist if there is none.
	Get(ctx context.Context, tag string) ([]byte, error)
	// Set makes data, a manifest of the given media type whose blobs are there, that of a tag.
	Set(ctx context.Context, tag, mediaType string, data []byte) error
	// Tags returns the tags that begin with prefix.
	Tags(ctx context.Context, prefix string) ([]string, error)
	// Remove removes the manifest with a digest, and its tag. Not every repository can.
	Remove(ctx context.Context, tag string, manifest digest.Digest) error
	// Open returns the bytes of a blob, whose last Read fails if they do not match desc; the error wraps fs.ErrNotExist if it is not there.
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	// Put stores a blob, unless it is there. open may be called several times.
	Put(ctx context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error
}

// maxManifest bounds the manifest of a cache in bytes: the 4 MiB that registries take at least (distribution-spec, "Pushing Manifests").
const maxManifest = 4 << 20

// maxEmbedding bounds a manifest in bytes that has its records embedded, in base64 (image-spec, "Descriptors"). It is far below
// maxManifest, since there are registries that are set to take less.
const maxEmbedding = 240 << 10

// maxBlobs bounds how many blobs one cache refers to, so that its manifest stays below maxManifest.
const maxBlobs = 15000

// ErrNoCache is wrapped by the errors for what is there, and no cache of kiln.
var ErrNoCache = errors.New("it is no cache of kiln")

// emptyConfig is the config of a manifest: that of a cache of BuildKit without records. A BuildKit that reads the cache finds nothing in
// it, and goes on.
var emptyConfig = ocispec.Descriptor{
	MediaType: buildkitConfig, Digest: ocispec.DescriptorEmptyJSON.Digest, Size: ocispec.DescriptorEmptyJSON.Size,
	Data: ocispec.DescriptorEmptyJSON.Data,
}

// buildkitConfig is the media type of what a cache of BuildKit holds.
const buildkitConfig = "application/vnd.buildkit.cacheconfig.v0"

// Form is what the manifest of a cache looks like. The zero value is an OCI image manifest; the others are for registries that refuse one
// whose config is not that of an image.
type Form string

// The other forms: indexes that list the blobs, as an OCI image index or as a manifest list of Docker.
const (
	FormIndex Form = ocispec.MediaTypeImageIndex
	FormList  Form = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// includedAnnotation names the entries of writers that a cache includes, as "TAG DIGEST,…".
const includedAnnotation = "kiln.cache.included"

// Head is what a tag holds: a manifest with its pack.
type Head struct {
	Pack *pack.Pack

	digest   digest.Digest // of the manifest
	inline   bool          // it is the image that has the cache
	form     Form
	included map[string]digest.Digest
}

// read returns what a manifest says. It calls apart before it asks the repository for more.
func read(ctx context.Context, r Repository, data []byte, apart func()) (*Head, error) {
	m, err := parse(data)
	if err != nil {
		return nil, err
	}
	blob, err := openRecords(ctx, r, m.Layers[0], apart)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	source := &ctxio.Source{R: blob}
	p, err := pack.Decode(ctx, source)
	if err == nil {
		_, err = io.Copy(io.Discard, source) // the digest is known at the end
	}
	switch {
	case err == nil || errors.Is(err, pack.ErrVersion):
	case source.Err != nil && !errors.As(source.Err, new(*cas.MismatchError)):
		err = source.Err
	default:
		err = &DamagedError{err}
	}
	if err != nil {
		return nil, err
	}
	h := &Head{Pack: p, digest: digest.FromBytes(data), included: parseIncluded(m.Annotations[includedAnnotation])}
	if m.MediaType != ocispec.MediaTypeImageManifest {
		h.form = Form(m.MediaType)
	}
	return h, nil
}

// openRecords opens the records that a manifest names, and may have embedded.
func openRecords(ctx context.Context, r Repository, desc ocispec.Descriptor, apart func()) (io.ReadCloser, error) {
	if len(desc.Data) > 0 {
		return cas.VerifyReader(io.NopCloser(bytes.NewReader(desc.Data)), desc, "the manifest"), nil
	}
	if _, ok := r.(Swapper); !ok {
		apart()
	}
	desc.Data = nil
	blob, err := r.Open(ctx, desc)
	if none(err) {
		return nil, &DamagedError{fmt.Errorf("its records are gone: %w", err)}
	}
	return blob, err
}

// DamagedError says that what is there is not what a kiln has put there.
type DamagedError struct{ Err error }

func (e *DamagedError) Error() string { return "it is damaged: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DamagedError) Unwrap() error { return e.Err }

// parse reads a manifest, and says what it is if it is not that of a cache.
func parse(data []byte) (*ocispec.Manifest, error) {
	var m struct {
		ocispec.Manifest
		// Manifests is that of an index.
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if len(data) > maxManifest {
		return nil, &DamagedError{fmt.Errorf("its manifest has %d bytes, and the limit is %d", len(data), maxManifest)}
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, &DamagedError{fmt.Errorf("its manifest is not JSON: %w", err)}
	}
	switch {
	case m.ArtifactType == pack.ArtifactType && len(m.Manifests) > 0:
		m.Layers = m.Manifests
	case m.ArtifactType == pack.ArtifactType:
	case m.Config.MediaType == buildkitConfig:
		return nil, fmt.Errorf("%w, but one of BuildKit, which kiln does not read", ErrNoCache)
	case len(m.Manifests) > 0:
		return nil, &imageError{"an index of images, or a cache of BuildKit"}
	case m.Config.MediaType == ocispec.MediaTypeImageConfig || m.Config.MediaType == "application/vnd.docker.container.image.v1+json":
		return nil, &imageError{"an image"}
	default:
		return nil, ErrNoCache
	}
	if len(m.Layers) == 0 || m.Layers[0].MediaType != pack.Type {
		return nil, fmt.Errorf("its manifest names no records: %w", pack.ErrVersion)
	}
	if d := m.Layers[0]; d.Digest.Validate() != nil || d.Digest.Algorithm() != digest.SHA256 || d.Size < 0 || d.Size > pack.MaxSize {
		return nil, &DamagedError{errors.New("its manifest names no records")}
	}
	return &m.Manifest, nil
}

// document is a manifest, and the records that it names first.
type document struct {
	head      *Head
	mediaType string
	manifest  []byte
	records   ocispec.Descriptor
	text      []byte // of the records
}

// newDocument makes the document of a pack that includes entries of writers. With embed the records are in the manifest as well, if they
// are small: whoever reads it needs no other request. That they are a blob too keeps registries and older readers content.
func newDocument(p *pack.Pack, included map[string]digest.Digest, form Form, embed bool) (*document, error) {
	text, err := p.Encode()
	if err != nil {
		return nil, err
	}
	records := ocispec.Descriptor{MediaType: pack.Type, Digest: digest.FromBytes(text), Size: int64(len(text))}
	config := emptyConfig
	config.Data = nil
	blobs := append([]ocispec.Descriptor{records}, p.Blobs()...)
	slices.SortStableFunc(blobs, func(a, b ocispec.Descriptor) int { return place(a) - place(b) })
	var annotations map[string]string
	if len(included) > 0 {
		annotations = map[string]string{includedAnnotation: formatIncluded(included)}
	}
	d := &document{records: records, text: text, mediaType: ocispec.MediaTypeImageManifest}
	var m any = &ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: d.mediaType, ArtifactType: pack.ArtifactType,
		Config: config, Layers: blobs, Annotations: annotations,
	}
	if form != "" {
		d.mediaType = string(form)
		blobs = append(blobs, config) // where BuildKit's caches have it
		m = &ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: d.mediaType, ArtifactType: pack.ArtifactType,
			Manifests: blobs, Annotations: annotations,
		}
	}
	if d.manifest, err = json.Marshal(m); err != nil {
		return nil, err
	}
	if embed && len(d.manifest)+base64.StdEncoding.EncodedLen(len(text)) < maxEmbedding {
		blobs[0].Data = text
		if d.manifest, err = json.Marshal(m); err != nil {
			return nil, err
		}
	}
	if len(d.manifest) > maxManifest {
		return nil, fmt.Errorf("the cache's manifest has %d bytes, and the limit is %d", len(d.manifest), maxManifest)
	}
	d.head = &Head{Pack: p, digest: digest.FromBytes(d.manifest), included: included, form: form}
	return d, nil
}

// place says where a blob is in a manifest: the records are first, and the tars of layers last, as if there was nothing else.
func place(d ocispec.Descriptor) int {
	switch {
	case d.MediaType == pack.Type:
		return 0
	case strings.HasPrefix(d.MediaType, ocispec.MediaTypeImageLayer):
		return 2
	}
	return 1
}

// Read returns the cache under a tag, or the inline cache of an image. The error wraps fs.ErrNotExist if there is none, pack.ErrVersion for
// one of a later version of kiln, ErrNoCache for something else, and is a *DamagedError for one that nobody can use.
func Read(ctx context.Context, r Repository, tag string) (*Head, error) {
	return readTag(ctx, r, tag, func() {})
}

// readTag is Read, and calls apart, possibly more than once, when the manifest has been read and more is asked for.
func readTag(ctx context.Context, r Repository, tag string, apart func()) (*Head, error) {
	data, err := r.Get(ctx, tag)
	if err != nil {
		return nil, err
	}
	h, err := read(ctx, r, data, apart)
	if errors.As(err, new(*imageError)) {
		apart()
		return readInline(ctx, r, data)
	}
	return h, err
}

// none reports whether an error says that something is not there.
func none(err error) bool { return errors.Is(err, fs.ErrNotExist) }
