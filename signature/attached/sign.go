package attached

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/signature"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Annotations of manifests with bundles, by which readers choose without reading the bundle (cosign, specs/BUNDLE_SPEC.md).
const (
	contentAnnotation   = "dev.sigstore.bundle.content"
	contentEnvelope     = "dsse-envelope"
	predicateAnnotation = "dev.sigstore.bundle.predicateType"
)

// Sign signs an image of the repository, whose blobs can be read, with keys: in both forms, beside the signatures that it has, and its
// attestations, each as a bundle. Signing an image again with the same key changes nothing. Errors are those of the registry, of blobs or
// of a key.
func (r Repository) Sign(ctx context.Context, desc ocispec.Descriptor, blobs registry.Blobs, keys []*signing.PrivateKey) error {
	self, err := signature.Statement(desc.Digest)
	if err != nil {
		return err
	}
	statements := []statement{{signature.PredicateType, self}}
	more, err := attested(desc, blobs)
	if err != nil {
		return err
	}
	for _, s := range append(statements, more...) {
		for _, key := range keys {
			if err := r.bundle(ctx, desc, s, key); err != nil {
				return err
			}
		}
	}
	return r.simple(ctx, desc.Digest, keys)
}

// SignNamed signs the image or index that the repository has under the tag or digest of the name, and returns its name with its digest.
func (r Repository) SignNamed(ctx context.Context, keys []*signing.PrivateKey) (string, error) {
	data, err := r.Client.Manifest(ctx, r.Name.String())
	if err != nil {
		return "", err
	}
	doc, err := image.Parse(data, "")
	if err != nil {
		return "", fmt.Errorf("%s: %w", r.Name, err)
	}
	desc := ocispec.Descriptor{MediaType: doc.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := r.Sign(ctx, desc, remoteBlobs{ctx, r}, keys); err != nil {
		return "", fmt.Errorf("sign %s: %w", r.Name, err)
	}
	return r.at("", desc.Digest), nil
}

// put puts a blob into the repository.
func (r Repository) put(ctx context.Context, mediaType string, data []byte) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	err := r.Client.PutBlob(ctx, r.at("", desc.Digest), desc, false, open)
	return desc, err
}

// bundle puts the bundle of a statement by one key into the repository.
func (r Repository) bundle(ctx context.Context, of ocispec.Descriptor, s statement, key *signing.PrivateKey) error {
	data, err := signature.Bundle(key, s.text)
	if err != nil {
		return err
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: signature.BundleMediaType,
		Subject:     &ocispec.Descriptor{MediaType: of.MediaType, Digest: of.Digest, Size: of.Size},
		Annotations: map[string]string{contentAnnotation: contentEnvelope, predicateAnnotation: s.predicateType},
	}
	if m.Config, err = r.put(ctx, ocispec.MediaTypeEmptyJSON, ocispec.DescriptorEmptyJSON.Data); err != nil {
		return err
	}
	layer, err := r.put(ctx, signature.BundleMediaType, data)
	if err != nil {
		return err
	}
	m.Layers = []ocispec.Descriptor{layer}
	return r.Client.PutReferrer(ctx, r.at("", of.Digest), m)
}

// maxTries bounds how often signatures are added to a manifest that others write too.
const maxTries = 5

// simple adds signatures to the manifest of the tag.
func (r Repository) simple(ctx context.Context, d digest.Digest, keys []*signing.PrivateKey) error {
	payload, err := signature.Payload(r.Name.Name(), d)
	if err != nil {
		return err
	}
	var layers []ocispec.Descriptor
	for _, key := range keys {
		sig, err := key.Sign(payload)
		if err != nil {
			return err
		}
		layers = append(layers, ocispec.Descriptor{
			MediaType: signature.SimpleMediaType, Digest: digest.FromBytes(payload), Size: int64(len(payload)),
			Annotations: map[string]string{signature.SignatureAnnotation: signature.Annotation(sig)},
		})
	}
	// Of several who write at the same time the last one wins, so it is read again.
	for range maxTries {
		m, err := r.signatures(ctx, d)
		if err != nil {
			return err
		}
		if !add(m, layers) {
			return nil
		}
		if _, err := r.put(ctx, signature.SimpleMediaType, payload); err != nil {
			return err
		}
		if err := r.putSignatures(ctx, d, m); err != nil {
			return err
		}
	}
	return fmt.Errorf("push %s: others change it all the time", r.at(Tag(d), ""))
}

// add adds the signatures to a manifest that it does not have, and reports whether there are any.
func add(m *ocispec.Manifest, layers []ocispec.Descriptor) (changed bool) {
	for _, layer := range layers {
		same := func(l ocispec.Descriptor) bool {
			return l.Digest == layer.Digest && l.Annotations[signature.SignatureAnnotation] == layer.Annotations[signature.SignatureAnnotation]
		}
		if !slices.ContainsFunc(m.Layers, same) {
			m.Layers, changed = append(m.Layers, layer), true
		}
	}
	return changed
}

// signatures returns the manifest of the tag, which has no layers if there is none yet.
func (r Repository) signatures(ctx context.Context, d digest.Digest) (*ocispec.Manifest, error) {
	data, err := r.Tagged(ctx, Tag(d))
	if err != nil {
		return nil, err
	}
	if data == nil {
		return &ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}, nil
	}
	m, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read the signatures of %s: %w", r.at(Tag(d), ""), err)
	}
	return m, nil
}

// putSignatures puts the manifest of the tag.
func (r Repository) putSignatures(ctx context.Context, d digest.Digest, m *ocispec.Manifest) error {
	config := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range m.Layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.Digest)
	}
	data, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode the config of signatures: %w", err)
	}
	if m.Config, err = r.put(ctx, ocispec.MediaTypeImageConfig, data); err != nil {
		return err
	}
	m.MediaType = ocispec.MediaTypeImageManifest
	if data, err = json.Marshal(m); err != nil {
		return fmt.Errorf("encode the manifest of signatures: %w", err)
	}
	return r.Client.PutManifest(ctx, r.at(Tag(d), ""), m.MediaType, data)
}
