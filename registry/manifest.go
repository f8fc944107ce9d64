package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/cas"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The media types of Docker's image manifest version 2, schema 2, whose documents have the fields of OCI's.
const (
	MediaTypeDockerManifest = cas.MediaTypeDockerManifest
	MediaTypeDockerIndex    = cas.MediaTypeDockerIndex
	MediaTypeDockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// schema1 begins the media types of Docker's first manifests, whose layers have no digests of their own content.
const schema1 = "application/vnd.docker.distribution.manifest.v1+"

// maxDepth bounds how deep indexes may lie in indexes: nobody builds more than two.
const maxDepth = 4

// maxLayers bounds the layers of an image: more than any runtime mounts, and few enough to handle.
const maxLayers = 4096

// maxProbes bounds how many manifests whose index does not say for which platform they are, are fetched to find out.
const maxProbes = 16

// accept lists what is asked for.
var accept = strings.Join([]string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, MediaTypeDockerIndex, MediaTypeDockerManifest}, ", ")

// IsIndex tells whether a media type is that of an index of manifests.
func IsIndex(mediaType string) bool { return cas.IsIndex(mediaType) }

// IsManifest tells whether a media type is that of an image's manifest.
func IsManifest(mediaType string) bool { return cas.IsManifest(mediaType) }

// document is a manifest or an index: one of the two is not nil.
type document struct {
	mediaType string
	manifest  *ocispec.Manifest
	index     *ocispec.Index
}

// parseDocument reads a manifest or index of the media type that its source declared: a Content-Type header or a
// descriptor's mediaType; "" says that it declared none. One document that two readers could take for different things is
// refused: one with fields of both kinds, of a type other than declared, or with a name that is there twice.
// See image-spec, manifest.md and image-index.md, and CVE-2021-41190.
func parseDocument(data []byte, declared string) (*document, error) {
	if declared != "" {
		t, _, err := mime.ParseMediaType(declared)
		if err != nil {
			return nil, invalid("read manifest: media type %q: %w", declared, err)
		}
		declared = t
	}
	if strings.HasPrefix(declared, schema1) {
		return nil, invalid("it is in Docker's manifest schema 1, which kiln does not read: have it pushed again by a current docker")
	}
	fields, err := fieldsOf(data)
	if err != nil {
		return nil, invalid("read manifest: %w", err)
	}
	var head struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, invalid("read manifest: %w", err)
	}
	if head.SchemaVersion == 1 || fields["fsLayers"] {
		return nil, invalid("it is in Docker's manifest schema 1, which kiln does not read: have it pushed again by a current docker")
	}
	if head.SchemaVersion != 2 {
		return nil, invalid("read manifest: its schemaVersion is %d, not 2", head.SchemaVersion)
	}
	mediaType := head.MediaType
	switch {
	case mediaType == "":
		mediaType = declared // OCI lets a document leave it out
		if mediaType != ocispec.MediaTypeImageManifest && mediaType != ocispec.MediaTypeImageIndex {
			return nil, invalid("read manifest: it has no mediaType and its source says %q", declared)
		}
	case declared != "" && declared != mediaType:
		return nil, invalid("read manifest: it says that it is %q and its source that it is %q", mediaType, declared)
	}
	isManifest, isIndex := fields["layers"] || fields["config"], fields["manifests"]
	if isManifest && isIndex {
		return nil, invalid("read manifest: it is both a manifest and an index")
	}
	doc := &document{mediaType: mediaType}
	switch {
	case IsManifest(mediaType) && isManifest:
		doc.manifest = &ocispec.Manifest{}
		if err := json.Unmarshal(data, doc.manifest); err != nil {
			return nil, invalid("read manifest: %w", err)
		}
		return doc, checkManifest(doc.manifest)
	case IsIndex(mediaType) && isIndex:
		doc.index = &ocispec.Index{}
		if err := json.Unmarshal(data, doc.index); err != nil {
			return nil, invalid("read index: %w", err)
		}
		return doc, checkDescriptors(doc.index.Manifests)
	}
	return nil, invalid("read manifest: %q is no image or lacks an image's fields", mediaType)
}

// fieldsOf returns the names of a JSON object's members. A name that is there twice, or in other capitals than encoding/json
// would read it by, is an error.
func fieldsOf(data []byte) (map[string]bool, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("it is no JSON object")
	}
	fields := map[string]bool{}
	folded := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, fmt.Errorf("it is no JSON object")
		}
		// strings.ToUpper and ToLower together fold what encoding/json folds: U+017F and U+212A too.
		fold := strings.ToLower(strings.ToUpper(name))
		if folded[fold] {
			return nil, fmt.Errorf("%q is there twice", name)
		}
		for _, known := range []string{"schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"} {
			if fold == strings.ToLower(known) && name != known {
				return nil, fmt.Errorf("%q should be %q", name, known)
			}
		}
		fields[name], folded[fold] = true, true
		var skip json.RawMessage
		if err := dec.Decode(&skip); err != nil {
			return nil, err
		}
	}
	return fields, nil
}

func checkManifest(m *ocispec.Manifest) error {
	if len(m.Layers) > maxLayers {
		return invalid("read manifest: it has %d layers, more than %d", len(m.Layers), maxLayers)
	}
	return checkDescriptors(append([]ocispec.Descriptor{m.Config}, m.Layers...))
}

func checkDescriptors(descs []ocispec.Descriptor) error {
	for _, d := range descs {
		if _, err := cas.ParseDigest(string(d.Digest)); err != nil {
			return invalid("read manifest: %w", err)
		}
		if d.Size < 0 {
			return invalid("read manifest: blob %s has size %d", d.Digest, d.Size)
		}
	}
	return nil
}

// normal returns a platform by the names that Go and OCI have for it, with the variants that go without saying.
func normal(p ocispec.Platform) ocispec.Platform {
	p.OS = strings.ToLower(p.OS)
	p.Architecture = strings.ToLower(p.Architecture)
	p.Variant = strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i686":
		p.Architecture = "386"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	if p.Variant != "" && p.Variant[0] != 'v' {
		p.Variant = "v" + p.Variant
	}
	if p.Variant == "" {
		switch p.Architecture {
		case "amd64":
			p.Variant = "v1"
		case "arm64":
			p.Variant = "v8"
		case "arm":
			p.Variant = "v7"
		}
	}
	return p
}

// platformName returns "os/arch[/variant]".
func platformName(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// unknown tells whether the platform is that of what is no image, such as the attestations beside one.
func unknown(p ocispec.Platform) bool { return p.OS == "unknown" || p.Architecture == "unknown" }

// fit returns how well an image for have runs on want: 0 not at all, else more for a variant nearer to want's.
func fit(want, have ocispec.Platform) int {
	want, have = normal(want), normal(have)
	if want.OS != have.OS || want.Architecture != have.Architecture {
		return 0
	}
	if want.OSVersion != "" && want.OSVersion != have.OSVersion {
		return 0
	}
	if want.Variant == have.Variant {
		return 1000
	}
	switch want.Architecture {
	case "amd64", "arm64", "arm": // later ones run what was made for earlier ones
		w, werr := strconv.Atoi(strings.TrimPrefix(want.Variant, "v"))
		h, herr := strconv.Atoi(strings.TrimPrefix(have.Variant, "v"))
		if werr == nil && herr == nil && 0 < h && h < w && w < 1000 {
			return 1000 - (w - h)
		}
	}
	return 0
}

// choose returns those entries of an index that could lead to an image for want, the best first, and separately those that
// do not say what they are for.
func choose(descs []ocispec.Descriptor, want ocispec.Platform) (fitting, unsaid []ocispec.Descriptor) {
	for _, d := range descs {
		switch {
		case !IsManifest(d.MediaType) && !IsIndex(d.MediaType):
		case d.Platform == nil || d.Platform.OS == "" && d.Platform.Architecture == "":
			unsaid = append(unsaid, d)
		case fit(want, *d.Platform) > 0:
			fitting = append(fitting, d)
		}
	}
	slices.SortStableFunc(fitting, func(a, b ocispec.Descriptor) int { return fit(want, *b.Platform) - fit(want, *a.Platform) })
	return fitting, unsaid
}

// mediaTypeOf returns a Content-Type without its parameters, as it is where it is malformed.
func mediaTypeOf(contentType string) string {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return contentType
	}
	return t
}
