// Package verify decides whether an image may be trusted: whether it is signed, what its attestations say of it, and whether it is made of
// what a lock file has. Whatever cannot be verified is a problem. It does not know where the image is.
package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/internal/strictjson"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/signature"
	"github.com/kilnbuild/kiln/store/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Request says what an image has to have.
type Request struct {
	// Keys are those of which one must have signed the image; nil if signatures are not looked for.
	Keys []*signing.PublicKey
	// Provenance and SBOM demand an attestation of each image for a platform.
	Provenance, SBOM bool
	// Lock has what the image must be made of; nil for no such check. It implies Provenance.
	Lock *Lock
}

// Report is what was found. Its text comes from whoever made the image, also that of the problems.
type Report struct {
	// Image is the name that was asked for, and Digest what it stands for now.
	Image  string `json:"image"`
	Digest string `json:"digest"`
	// Verified says that there are no problems.
	Verified bool `json:"verified"`
	// Signatures are those that were verified, and SignaturesChecked says that they were looked for.
	Signatures        []Signature `json:"signatures"`
	SignaturesChecked bool        `json:"signaturesChecked"`
	// Images are those of the index, or the image alone.
	Images   []Image   `json:"images"`
	Problems []Problem `json:"problems"`
}

// Signature is one that was verified.
type Signature struct {
	// Key is the SHA-256 of the public key.
	Key string `json:"key"`
	// Form is "simple" or "bundle".
	Form string `json:"form"`
	// Repository is the one that the image was signed in; "" if the signature does not say.
	Repository string `json:"repository,omitempty"`
}

// Image is an image for a platform.
type Image struct {
	Platform     string        `json:"platform,omitempty"`
	Digest       string        `json:"digest"`
	Attestations []Attestation `json:"attestations"`
}

// Attestation is a statement about an image that is well-formed.
type Attestation struct {
	Type   string `json:"type"`
	Digest string `json:"digest"`
	// Builder and Materials are those of provenance.
	Builder   string `json:"builder,omitempty"`
	Materials int    `json:"materials,omitempty"`
	// Locked says that all materials are those of the lock file.
	Locked bool `json:"locked,omitempty"`
}

// Problem is a reason not to trust the image.
type Problem struct {
	// Platform is that of the image which has the problem; "" if all have it.
	Platform string `json:"platform,omitempty"`
	Text     string `json:"text"`
}

func (p Problem) String() string {
	if p.Platform == "" {
		return p.Text
	}
	return p.Platform + ": " + p.Text
}

// Error is an image that was not verified.
type Error struct {
	Image, Digest string
	Problems      []Problem
}

func (e *Error) Error() string {
	texts := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		texts[i] = p.String()
	}
	return fmt.Sprintf("%s is not verified: %s", e.Image, strings.Join(texts, "; "))
}

// verifier verifies one image.
type verifier struct {
	ctx     context.Context
	of      *images.Attested
	request Request
	report  *Report
	used    usedEntries
	// platform is that of the image that is being verified.
	platform string
}

// Verify verifies an image. The error is an *Error if there are problems, and the report is complete then; any other error means that not
// all could be looked at, and that nothing is known.
func Verify(ctx context.Context, of *images.Attested, r Request) (*Report, error) {
	v := &verifier{ctx: ctx, of: of, request: r, used: usedEntries{}, report: &Report{
		Image: of.Name, Digest: of.Digest.String(), SignaturesChecked: r.Keys != nil,
		Signatures: []Signature{}, Images: []Image{}, Problems: []Problem{},
	}}
	if r.Keys != nil {
		if err := v.signatures(); err != nil {
			return nil, err
		}
	}
	if len(of.Images) == 0 {
		v.problem("it has no image")
	}
	for _, img := range of.Images {
		if err := v.image(img); err != nil {
			return nil, err
		}
	}
	v.platform = ""
	if r.Lock != nil {
		v.unused()
	}
	v.report.Verified = len(v.report.Problems) == 0
	if !v.report.Verified {
		return v.report, &Error{v.report.Image, v.report.Digest, v.report.Problems}
	}
	return v.report, nil
}

// problem adds a problem of the image that is being verified.
func (v *verifier) problem(format string, args ...any) {
	v.report.Problems = append(v.report.Problems, Problem{v.platform, fmt.Sprintf(format, args...)})
}

// signatures looks for one by one of the keys.
func (v *verifier) signatures() error {
	found, err := v.of.Signatures(v.ctx)
	if err != nil {
		return fmt.Errorf("look for signatures of %s: %w", v.of.Name, err)
	}
	var why []string
	others := 0
	for _, c := range found {
		valid, err := c.Verify(v.of.Digest, v.request.Keys)
		switch {
		case errors.Is(err, signature.ErrOtherKey):
			others++
			continue
		case err != nil:
			why = append(why, strings.TrimPrefix(c.From+": "+err.Error(), ": "))
			continue
		}
		v.report.Signatures = append(v.report.Signatures, Signature{valid.Key, string(valid.Form), valid.Repository})
	}
	switch {
	case len(v.report.Signatures) > 0:
	case len(found) == 0:
		v.problem("%s has no signature", v.of.Digest)
	default:
		if others > 0 {
			why = append(why, fmt.Sprintf("%d by other keys", others))
		}
		v.problem("%s has no signature by a key that was given: %s", v.of.Digest, termtext.List(why))
	}
	return nil
}

// image verifies the attestations of an image for one platform.
func (v *verifier) image(img images.AttestedImage) error {
	v.platform = img.Platform
	out := Image{Platform: img.Platform, Digest: img.Digest.String(), Attestations: []Attestation{}}
	if err := v.manifest(img); err != nil {
		return err
	}
	provenance, sbom := false, false
	for _, stored := range img.Attestations {
		data, err := v.of.Read(v.ctx, stored)
		if err != nil {
			return err
		}
		a := Attestation{Type: stored.PredicateType, Digest: stored.Desc.Digest.String()}
		statement, err := v.statement(img, stored, data)
		if err == nil {
			a.Type = statement.PredicateType
			switch {
			case attestation.IsProvenance(a.Type):
				err = v.provenance(statement, &a)
				provenance = true
			case a.Type == attestation.SPDX:
				err = spdx(statement.Predicate)
				sbom = true
			}
		}
		if err != nil {
			v.problem("the attestation %s: %v", stored.Desc.Digest, err)
			continue
		}
		out.Attestations = append(out.Attestations, a)
	}
	if (v.request.Provenance || v.request.Lock != nil) && !provenance {
		v.problem("it has no provenance")
	}
	if v.request.SBOM && !sbom {
		v.problem("it has no SBOM")
	}
	v.report.Images = append(v.report.Images, out)
	return nil
}

// manifest verifies that the manifest of an image is there, and that the image is for the platform that the index has it for.
func (v *verifier) manifest(img images.AttestedImage) error {
	data, err := v.of.Document(v.ctx, img.Entries[0])
	if err != nil {
		return fmt.Errorf("read the image %s: %w", img.Digest, err)
	}
	doc, err := image.Parse(data, img.Entries[0].MediaType)
	if err != nil {
		return fmt.Errorf("read the image %s: %w", img.Digest, err)
	}
	if data, err = v.of.Blob(v.ctx, doc.Manifest.Config, cas.MaxManifest); err != nil {
		return fmt.Errorf("read the configuration of the image %s: %w", img.Digest, err)
	}
	var is ocispec.Platform
	if err := json.Unmarshal(data, &is); err != nil {
		return fmt.Errorf("read the configuration of the image %s: %w", img.Digest, err)
	}
	for _, e := range img.Entries {
		p := e.Platform
		if p != nil && (p.OS != is.OS || p.Architecture != is.Architecture || p.Variant != is.Variant && p.Variant != "" && is.Variant != "") {
			v.problem("the image %s is for %.100s, and the index has it for %.100s", img.Digest, image.PlatformName(is), image.PlatformName(*p))
		}
	}
	return nil
}

// statement reads a statement and verifies that it is about the image.
func (v *verifier) statement(img images.AttestedImage, stored images.StoredAttestation, data []byte) (*attestation.Statement, error) {
	if err := strictjson.Check(data, false); err != nil {
		return nil, err
	}
	s, err := attestation.ParseStatement(data)
	if err != nil {
		return nil, err
	}
	if s.PredicateType != stored.PredicateType {
		return nil, fmt.Errorf("it is listed as %.200q, and says that it is %.200q", stored.PredicateType, s.PredicateType)
	}
	about := 0
	for _, r := range s.Subject {
		if r.Digest[img.Digest.Algorithm().String()] == img.Digest.Encoded() {
			about++
		}
	}
	// Whoever scans an image may tell of other things as well. A build describes what it made.
	if about == 0 || attestation.IsProvenance(s.PredicateType) && about < len(s.Subject) {
		return nil, fmt.Errorf("it is about another image than %s", img.Digest)
	}
	return s, nil
}

// spdx verifies that a predicate is a document of SPDX.
func spdx(predicate json.RawMessage) error {
	var doc struct {
		Version string `json:"spdxVersion"`
		ID      string `json:"SPDXID"`
	}
	if err := json.Unmarshal(predicate, &doc); err != nil {
		return fmt.Errorf("read the SBOM: %w", err)
	}
	if !strings.HasPrefix(doc.Version, "SPDX-") || doc.ID == "" {
		return errors.New("it is not a document of SPDX")
	}
	return nil
}
