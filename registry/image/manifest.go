// Package image reads what describes an image, manifests, indexes and configs, and finds the image for a platform. It does not know where
// they come from: a registry and an OCI layout are Documents.
package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"strings"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/fetch"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// mediaTypeDockerConfig is that of Docker's image manifest version 2, schema 2, whose configs have the fields of OCI's.
const mediaTypeDockerConfig = "application/vnd.docker.container.image.v1+json"

// schema1 begins the media types of Docker's first manifests, whose layers have no digests of their own content.
const schema1 = "application/vnd.docker.distribution.manifest.v1+"

// ErrTooLarge is a manifest or index that is too large to be read.
var ErrTooLarge = fetch.Invalid("a manifest or index of more than %d bytes is not read", cas.MaxManifest)

// MaxDepth bounds how deep indexes may be nested. In practice it is at most two.
const MaxDepth = 4

// maxLayers bounds the layers of an image: more than any runtime mounts, and few enough to handle.
const maxLayers = 4096

// maxProbes bounds how many manifests are fetched only because their index does not tell their platform.
const maxProbes = 16

// Accept is the header that asks a registry for what Parse reads.
var Accept = strings.Join([]string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, cas.MediaTypeDockerIndex, cas.MediaTypeDockerManifest,
}, ", ")

// Document is a manifest or an index: one of the two is not nil.
type Document struct {
	MediaType string
	Manifest  *ocispec.Manifest
	Index     *ocispec.Index
}

// Parse reads a manifest or index of the media type that its source declared: a Content-Type header or a
// descriptor's mediaType; "" if it declared none. A document that two readers could interpret differently is an error: one with
// fields of both kinds, of another type than declared, or with a duplicate name.
// See image-spec, manifest.md and image-index.md, and CVE-2021-41190.
func Parse(data []byte, declared string) (*Document, error) {
	if declared != "" {
		t, _, err := mime.ParseMediaType(declared)
		if err != nil {
			return nil, fetch.Invalid("read manifest: media type %q: %w", declared, err)
		}
		declared = t
	}
	if strings.HasPrefix(declared, schema1) {
		return nil, fetch.Invalid("it is in Docker's manifest schema 1, which kiln does not read: have it pushed again by a current docker")
	}
	fields, err := fieldsOf(data)
	if err != nil {
		return nil, fetch.Invalid("read manifest: %w", err)
	}
	var head struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fetch.Invalid("read manifest: %w", err)
	}
	if head.SchemaVersion == 1 || fields["fsLayers"] {
		return nil, fetch.Invalid("it is in Docker's manifest schema 1, which kiln does not read: have it pushed again by a current docker")
	}
	if head.SchemaVersion != 2 {
		return nil, fetch.Invalid("read manifest: its schemaVersion is %d, not 2", head.SchemaVersion)
	}
	mediaType := head.MediaType
	switch {
	case mediaType == "":
		mediaType = declared // OCI lets a document leave it out
		if mediaType != ocispec.MediaTypeImageManifest && mediaType != ocispec.MediaTypeImageIndex {
			return nil, fetch.Invalid("read manifest: it has no mediaType and its source says %q", declared)
		}
	case declared != "" && declared != mediaType:
		return nil, fetch.Invalid("read manifest: it says that it is %q and its source that it is %q", mediaType, declared)
	}
	isManifest, isIndex := fields["layers"] || fields["config"], fields["manifests"]
	if isManifest && isIndex {
		return nil, fetch.Invalid("read manifest: it is both a manifest and an index")
	}
	doc := &Document{MediaType: mediaType}
	switch {
	case cas.IsManifest(mediaType) && isManifest:
		doc.Manifest = &ocispec.Manifest{}
		if err := json.Unmarshal(data, doc.Manifest); err != nil {
			return nil, fetch.Invalid("read manifest: %w", err)
		}
		return doc, checkManifest(doc.Manifest)
	case cas.IsIndex(mediaType) && isIndex:
		doc.Index = &ocispec.Index{}
		if err := json.Unmarshal(data, doc.Index); err != nil {
			return nil, fetch.Invalid("read index: %w", err)
		}
		return doc, CheckDescriptors(doc.Index.Manifests)
	}
	return nil, fetch.Invalid("read manifest: %q is not an image, or lacks fields of one", mediaType)
}

// fieldsOf returns the names of a JSON object's members. A duplicate name is an error, as is a known name in other capitals, which
// encoding/json would accept.
func fieldsOf(data []byte) (map[string]bool, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("it is not a JSON object")
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
			return nil, fmt.Errorf("it is not a JSON object")
		}
		// strings.ToUpper and ToLower together fold what encoding/json folds: U+017F and U+212A too.
		fold := strings.ToLower(strings.ToUpper(name))
		if folded[fold] {
			return nil, fmt.Errorf("%q is duplicated", name)
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
		return fetch.Invalid("read manifest: it has %d layers, more than %d", len(m.Layers), maxLayers)
	}
	return CheckDescriptors(append([]ocispec.Descriptor{m.Config}, m.Layers...))
}

// isLayer reports whether a media type is that of a tar, compressed or not. Others are encrypted layers ("+encrypted"), WebAssembly and
// further artifacts (image-spec, "layer.md"; distribution, "Image Manifest Version 2, Schema 2").
func isLayer(mediaType string) bool {
	for _, tar := range []string{
		"application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar",
	} {
		if compression, ok := strings.CutPrefix(mediaType, tar); ok {
			switch compression {
			case "", "+gzip", "+zstd", ".gzip", ".zstd":
				return true
			}
		}
	}
	return false
}

// CheckDescriptors returns an error unless each has a digest and a size.
func CheckDescriptors(descs []ocispec.Descriptor) error {
	for _, d := range descs {
		if _, err := cas.ParseDigest(string(d.Digest)); err != nil {
			return fetch.Invalid("read manifest: %w", err)
		}
		if d.Size < 0 {
			return fetch.Invalid("read manifest: blob %s has size %d", d.Digest, d.Size)
		}
	}
	return nil
}

// MediaType returns a Content-Type without its parameters. A malformed one is returned unchanged.
func MediaType(contentType string) string {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return contentType
	}
	return t
}
