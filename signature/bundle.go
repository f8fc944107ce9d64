package signature

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/internal/strictjson"
	digest "github.com/opencontainers/go-digest"
)

// PredicateType is that of the statement which signs an image, and says nothing else of it.
const PredicateType = "https://sigstore.dev/cosign/sign/v1"

// bundle is a bundle of Sigstore (protobuf-specs, sigstore_bundle.proto, in the JSON of protocol buffers), as far as signatures by keys
// have need of it.
type bundle struct {
	MediaType string    `json:"mediaType"`
	Material  material  `json:"verificationMaterial"`
	Envelope  *envelope `json:"dsseEnvelope,omitempty"`
}

type material struct {
	PublicKey *publicKey `json:"publicKey,omitempty"`
}

// publicKey says which key it was. It is a hint.
type publicKey struct {
	Hint string `json:"hint"`
}

// envelope is a signed message (DSSE, protocol.md).
type envelope struct {
	Payload     string `json:"payload"`
	PayloadType string `json:"payloadType"`
	Signatures  []struct {
		Sig string `json:"sig"`
	} `json:"signatures"`
}

// encoded returns what of an envelope is signed (DSSE, "Signature Definition").
func encoded(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

// Statement returns the statement that signs an image.
func Statement(image digest.Digest) ([]byte, error) {
	type subject struct {
		Digest map[string]string `json:"digest"`
	}
	data, err := json.Marshal(struct {
		Type          string    `json:"_type"`
		Subject       []subject `json:"subject"`
		PredicateType string    `json:"predicateType"`
		Predicate     struct{}  `json:"predicate"`
	}{Type: attestation.StatementType, Subject: []subject{{attestation.Digests(image)}}, PredicateType: PredicateType})
	if err != nil {
		return nil, fmt.Errorf("encode the statement of a signature: %w", err)
	}
	return data, nil
}

// Bundle signs a statement of in-toto. The bundle of one statement by one key is always the same.
func Bundle(key *signing.PrivateKey, statement []byte) ([]byte, error) {
	sig, err := key.Sign(encoded(attestation.MediaType, statement))
	if err != nil {
		return nil, err
	}
	id, err := hex.DecodeString(key.Public().ID())
	if err != nil {
		return nil, fmt.Errorf("BUG: the ID of a key: %w", err)
	}
	b := bundle{MediaType: BundleMediaType, Envelope: &envelope{
		Payload: base64.StdEncoding.EncodeToString(statement), PayloadType: attestation.MediaType,
	}}
	b.Material.PublicKey = &publicKey{base64.StdEncoding.EncodeToString(id)}
	b.Envelope.Signatures = append(b.Envelope.Signatures, struct {
		Sig string `json:"sig"`
	}{base64.StdEncoding.EncodeToString(sig)})
	data, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encode a bundle: %w", err)
	}
	return data, nil
}

// open returns the statement of a bundle, and the ID of the key that signed it. Nothing that is not signed is returned.
func open(data []byte, keys []*signing.PublicKey) (statement []byte, key string, err error) {
	if len(data) > MaxBundle {
		return nil, "", fmt.Errorf("it has more than %d bytes", MaxBundle)
	}
	if err := strictjson.Check(data, true); err != nil {
		return nil, "", fmt.Errorf("read the bundle: %w", err)
	}
	var b bundle
	if err := json.Unmarshal(data, &b); err != nil {
		return nil, "", fmt.Errorf("read the bundle: %w", err)
	}
	e := b.Envelope
	switch {
	case b.MediaType != BundleMediaType:
		return nil, "", fmt.Errorf("it is a bundle of the type %.100q, and not %q", b.MediaType, BundleMediaType)
	case b.Material.PublicKey == nil:
		return nil, "", errors.New("it is signed with a certificate, and not with a key")
	case e == nil:
		return nil, "", errors.New("the bundle has no signed statement")
	case len(e.Signatures) != 1:
		return nil, "", fmt.Errorf("the bundle has %d signatures, and not one", len(e.Signatures))
	case e.PayloadType != attestation.MediaType:
		return nil, "", fmt.Errorf("it signs something of the type %.100q, and not %q", e.PayloadType, attestation.MediaType)
	}
	sig, err := decode(e.Signatures[0].Sig)
	if err != nil {
		return nil, "", fmt.Errorf("read the bundle's signature: %w", err)
	}
	if statement, err = decode(e.Payload); err != nil {
		return nil, "", fmt.Errorf("read the bundle's payload: %w", err)
	}
	if key, err = signer(encoded(e.PayloadType, statement), sig, keys); err != nil {
		return nil, "", err
	}
	return statement, key, nil
}

// decode decodes base64. A text that is not what encoding the result gives is an error.
func decode(text string) ([]byte, error) {
	data, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, err
	}
	if base64.StdEncoding.EncodedLen(len(data)) != len(text) {
		return nil, errors.New("there are line breaks in base64")
	}
	return data, nil
}

// Signature returns the signature of an annotation of the form Simple.
func Signature(annotation string) ([]byte, error) {
	sig, err := decode(annotation)
	if err != nil {
		return nil, fmt.Errorf("read the annotation %s: %w", SignatureAnnotation, err)
	}
	return sig, nil
}

// Annotation returns the annotation of a signature in the form Simple.
func Annotation(sig []byte) string { return base64.StdEncoding.EncodeToString(sig) }

func verifyBundle(data []byte, image digest.Digest, keys []*signing.PublicKey) (string, error) {
	statement, key, err := open(data, keys)
	if err != nil {
		return "", err
	}
	if err := strictjson.Check(statement, true); err != nil {
		return "", fmt.Errorf("read the statement: %w", err)
	}
	s, err := attestation.ParseStatement(statement)
	switch {
	case err != nil:
		return "", err
	case s.PredicateType != PredicateType:
		return "", fmt.Errorf("it is not a signature, but a statement of the type %.100q", s.PredicateType)
	case len(s.Subject) != 1:
		return "", fmt.Errorf("it has %d subjects, and not one", len(s.Subject))
	}
	if d := s.Subject[0].Digest; len(d) != 1 || d[image.Algorithm().String()] != image.Encoded() {
		return "", fmt.Errorf("it is of another image, %.200v", d)
	}
	return key, nil
}
