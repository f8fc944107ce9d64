package exporter

import (
	"encoding/json"
	"fmt"

	"github.com/kilnbuild/kiln/attestation"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Attest writes statements about an image to the store, and the manifest that has them as layers, in the order in which they are given. With
// artifact it is an artifact that names the image as its subject, otherwise it has the form of an image, for registries that accept
// nothing else.
func (b *Blobs) Attest(image Manifest, statements []attestation.Statement, artifact bool) (*Manifest, error) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{Platform: attestation.Unknown(), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}}
	for _, s := range statements {
		data, err := json.Marshal(s)
		if err == nil && len(data) > attestation.MaxStatement {
			err = fmt.Errorf("it has %d bytes; the limit is %d MiB", len(data), attestation.MaxStatement>>20)
		}
		if err != nil {
			return nil, fmt.Errorf("write the attestation %s: %w", s.PredicateType, err)
		}
		desc, err := b.Store.Put(attestation.MediaType, data)
		if err != nil {
			return nil, err
		}
		desc.Annotations = map[string]string{attestation.PredicateAnnotation: s.PredicateType}
		m.Layers = append(m.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, desc.Digest)
	}
	var err error
	if artifact {
		m.ArtifactType = attestation.ArtifactType
		m.Subject = &ocispec.Descriptor{MediaType: image.Desc.MediaType, Digest: image.Desc.Digest, Size: image.Desc.Size}
		m.Config = ocispec.DescriptorEmptyJSON
		_, err = b.Store.Put(m.Config.MediaType, m.Config.Data)
	} else {
		m.Config, err = b.putJSON(ocispec.MediaTypeImageConfig, config)
	}
	if err != nil {
		return nil, err
	}
	desc, err := b.putJSON(m.MediaType, m)
	platform := attestation.Unknown()
	desc.Platform = &platform
	desc.Annotations = map[string]string{
		attestation.TypeAnnotation: attestation.TypeManifest, attestation.DigestAnnotation: image.Desc.Digest.String(),
	}
	return &Manifest{Desc: desc, Manifest: m}, err
}
