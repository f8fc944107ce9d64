// Package signature has the two forms that signatures of images have for cosign, a payload with its signature and a bundle: it makes them,
// and verifies them with public keys. It does not know where they are kept.
package signature

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/internal/strictjson"
	digest "github.com/opencontainers/go-digest"
)

// Form is how a signature is written.
type Form string

// The forms.
const (
	// Simple is a payload with a signature in an annotation beside it (cosign, specs/SIGNATURE_SPEC.md).
	Simple Form = "simple"
	// Bundled is a bundle of Sigstore with a signed statement (cosign, specs/BUNDLE_SPEC.md).
	Bundled Form = "bundle"
)

// Media types and annotations of the forms.
const (
	SimpleMediaType     = "application/vnd.dev.cosign.simplesigning.v1+json"
	SignatureAnnotation = "dev.cosignproject.cosign/signature"
	BundleMediaType     = "application/vnd.dev.sigstore.bundle.v0.3+json"
)

// Limits of what is read, in bytes. A payload of cosign has some 300, unless users add to it; a bundle has a statement, and what
// transparency logs say of it.
const (
	MaxPayload = 64 << 10
	MaxBundle  = 1 << 20
)

// criticalType is what the payload of an image's signature says that it is.
const criticalType = "cosign container image signature"

// payload is what is signed in the form Simple.
type payload struct {
	Critical struct {
		Identity struct {
			DockerReference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			DockerManifestDigest string `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]any `json:"optional"`
}

// Payload returns what is signed of an image in the form Simple: its digest, and the repository that it is signed in.
func Payload(repository string, image digest.Digest) ([]byte, error) {
	var p payload
	p.Critical.Identity.DockerReference = repository
	p.Critical.Image.DockerManifestDigest = image.String()
	p.Critical.Type = criticalType
	data, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode the payload of a signature: %w", err)
	}
	return data, nil
}

// Candidate is something that may be a signature of an image.
type Candidate struct {
	Form Form
	// From says where it is.
	From string
	// Payload and Signature are those of the form Simple, and Bundle that of Bundled.
	Payload, Signature, Bundle []byte
	// Err says why it could not be read; nil if it was.
	Err error
}

// Valid is a signature that was verified.
type Valid struct {
	Form Form
	// Key is the ID of the key that made it.
	Key string
	// From says where it is.
	From string
	// Repository is the one that the image was signed in, which need not be where it is now; "" if the signature does not say.
	Repository string
}

// ErrOtherKey is a signature that none of the keys has made.
var ErrOtherKey = errors.New("it is not by a key that was given")

// Verify verifies that a candidate is a signature of an image by one of the keys. The error says why it is not.
func (c *Candidate) Verify(image digest.Digest, keys []*signing.PublicKey) (Valid, error) {
	v := Valid{Form: c.Form, From: c.From}
	if c.Err != nil {
		return v, c.Err
	}
	var err error
	switch c.Form {
	case Simple:
		v.Key, v.Repository, err = verifySimple(c.Payload, c.Signature, image, keys)
	case Bundled:
		v.Key, err = verifyBundle(c.Bundle, image, keys)
	default:
		err = fmt.Errorf("there is no form %q", c.Form)
	}
	return v, err
}

// signer returns the ID of the key whose signature of a message it is.
func signer(message, sig []byte, keys []*signing.PublicKey) (string, error) {
	i := slices.IndexFunc(keys, func(k *signing.PublicKey) bool { return k.Verify(message, sig) })
	if i < 0 {
		return "", ErrOtherKey
	}
	return keys[i].ID(), nil
}

func verifySimple(data, sig []byte, image digest.Digest, keys []*signing.PublicKey) (key, repository string, err error) {
	if len(data) > MaxPayload {
		return "", "", fmt.Errorf("its payload has more than %d bytes", MaxPayload)
	}
	if key, err = signer(data, sig, keys); err != nil {
		return "", "", err
	}
	if err := strictjson.Check(data, true); err != nil {
		return "", "", fmt.Errorf("read its payload: %w", err)
	}
	var p payload
	if err := json.Unmarshal(data, &p); err != nil {
		return "", "", fmt.Errorf("read its payload: %w", err)
	}
	switch c := &p.Critical; {
	case c.Type != criticalType:
		return "", "", fmt.Errorf("it is of the type %.100q, and not %q", c.Type, criticalType)
	case c.Image.DockerManifestDigest != image.String():
		return "", "", fmt.Errorf("it is of another image, %.100q", c.Image.DockerManifestDigest)
	}
	return key, p.Critical.Identity.DockerReference, nil
}
