// Package attestation describes attestations: statements about images, in the format of in-toto, and how they are kept beside an image, as
// BuildKit does it. It does not know who makes them, nor where images are.
//
// An image with attestations is an index. For each image in it there may be another manifest, of the platform unknown/unknown, whose
// annotations name the image by its digest, and whose layers are statements.
package attestation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Types of statements and of what is in them.
const (
	// StatementType is the type of the statements that kiln writes (in-toto attestation framework, version 1), and StatementType01 that of
	// earlier ones, which it reads.
	StatementType   = "https://in-toto.io/Statement/v1"
	StatementType01 = "https://in-toto.io/Statement/v0.1"
	// SLSA1 and SLSA02 are types of predicates: the provenance of a build.
	SLSA1  = "https://slsa.dev/provenance/v1"
	SLSA02 = "https://slsa.dev/provenance/v0.2"
	// SPDX is the type of a predicate that is a software bill of materials.
	SPDX = "https://spdx.dev/Document"
)

// How statements are kept beside an image (BuildKit, docs/attestations/attestation-storage.md).
const (
	// MediaType is that of a statement as a layer, which has the type of the predicate in PredicateAnnotation.
	MediaType           = "application/vnd.in-toto+json"
	PredicateAnnotation = "in-toto.io/predicate-type"
	// ArtifactType is that of a manifest of statements that is an artifact and not an image.
	ArtifactType = "application/vnd.docker.attestation.manifest.v1+json"
	// TypeAnnotation of an entry of an index has the value TypeManifest for a manifest of statements, and DigestAnnotation names the image
	// that they are about.
	TypeAnnotation   = "vnd.docker.reference.type"
	DigestAnnotation = "vnd.docker.reference.digest"
	TypeManifest     = "attestation-manifest"
)

// Unknown is the platform of a manifest of statements.
func Unknown() ocispec.Platform { return ocispec.Platform{OS: "unknown", Architecture: "unknown"} }

// Subject returns the digest of the image that an entry of an index attests; false for an entry that is no manifest of statements.
func Subject(d ocispec.Descriptor) (digest.Digest, bool) {
	of := d.Annotations[DigestAnnotation]
	return digest.Digest(of), d.Annotations[TypeAnnotation] == TypeManifest && of != ""
}

// IsImage reports whether an entry of an index is meant to be run, and does not say something of another entry.
func IsImage(d ocispec.Descriptor) bool {
	if d.Annotations[TypeAnnotation] != "" {
		return false
	}
	return d.Platform == nil || d.Platform.OS != Unknown().OS && d.Platform.Architecture != Unknown().Architecture
}

// Attestation is what is said of an image.
type Attestation struct {
	PredicateType string
	// Predicate is JSON.
	Predicate json.RawMessage
	// Subjects are what it is about; none stands for the image, or the files of an output that is not an image.
	Subjects []About
	// File is the name of the file that an output which is not an image has of it: "provenance.json".
	File string
	// InlineOnly leaves it out of all outputs but images in a store or registry.
	InlineOnly bool
	// Core says that it is the software bill of materials of the image itself.
	Core bool
}

// About is something that an attestation is about: a Resource, or if Self is set the image, or the files of an output that is not an
// image, under the name of the Resource as well unless that is "".
type About struct {
	Resource
	Self bool
}

// Subjects returns resources as subjects.
func Subjects(all []Resource) []About {
	var out []About
	for _, r := range all {
		out = append(out, About{Resource: r})
	}
	return out
}

// Nameless is the name of a subject that has none (in-toto, ResourceDescriptor).
const Nameless = "_"

// Given are attestations that whoever made a result has of an image. They are read when they are needed.
type Given struct {
	// InlineOnly and PredicateType are as in Attestation; the latter is "" where it is not known before they are read.
	InlineOnly    bool
	PredicateType string
	// Read returns them. The sum of their predicates has at most limit bytes; more are an error.
	Read func(ctx context.Context, limit int64) ([]Attestation, error)
}

// Resource is a thing with a digest. Digests are hexadecimal, by the names of their algorithms.
type Resource struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// Digests returns the digests of a Resource that has one.
func Digests(d digest.Digest) map[string]string {
	return map[string]string{d.Algorithm().String(): d.Encoded()}
}

// DigestText returns the digests of a Resource as text, "sha256:…", in the order of their algorithms.
func DigestText(digests map[string]string) string {
	var all []string
	for _, algorithm := range slices.Sorted(maps.Keys(digests)) {
		all = append(all, algorithm+":"+digests[algorithm])
	}
	return strings.Join(all, " ")
}

// Statement is an attestation with its subjects.
type Statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []Resource      `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Statement returns the statement of an attestation about self, unless it has subjects of its own.
func (a *Attestation) Statement(self []Resource) Statement {
	s := Statement{Type: StatementType, PredicateType: a.PredicateType, Subject: []Resource{}, Predicate: a.Predicate}
	if len(a.Subjects) == 0 {
		s.Subject = append(s.Subject, self...)
	}
	for _, of := range a.Subjects {
		if !of.Self {
			s.Subject = append(s.Subject, of.Resource)
			continue
		}
		for _, r := range self {
			s.Subject = append(s.Subject, r)
			if of.Name != "" {
				s.Subject = append(s.Subject, Resource{Name: of.Name, Digest: r.Digest})
			}
		}
	}
	return s
}

// MaxStatement bounds a statement in bytes, as in BuildKit.
const MaxStatement = 80 << 20

// ParseStatement reads a statement. The error says what is wrong with it.
func ParseStatement(data []byte) (*Statement, error) {
	if len(data) > MaxStatement {
		return nil, fmt.Errorf("a statement of more than %d MiB is not read", MaxStatement>>20)
	}
	s := &Statement{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("it is not an in-toto statement: %w", err)
	}
	switch {
	case s.Type != StatementType && s.Type != StatementType01:
		return nil, fmt.Errorf("it is not an in-toto statement: its _type is %.100q", s.Type)
	case s.PredicateType == "":
		return nil, errors.New("it is an in-toto statement without a predicateType")
	}
	return s, nil
}

// IsProvenance reports whether a predicate of a type is the provenance of a build.
func IsProvenance(predicateType string) bool {
	return predicateType == SLSA1 || predicateType == SLSA02
}
