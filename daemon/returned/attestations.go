// Package returned reads what clients of BuildKit's API say of a result besides its files: its platforms, and attestations.
package returned

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	attestations "github.com/moby/buildkit/solver/result"
	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/daemon/trees"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
)

// MaxAttestations is how many attestations a result has, maxBundled how many files are in a directory of them, and maxSubjects how many
// subjects one has.
const (
	MaxAttestations = 1000
	maxBundled      = 1000
	maxSubjects     = 1000
)

// Attestation is an attestation of an image of a result. It is in files of a ref.
type Attestation struct {
	*gateway.Attestation
	// Files returns the files of the ref.
	Files func(ctx context.Context) (layer.Tree, error)
}

// Of returns the attestation with another ref.
func (a Attestation) Of(ref *gateway.Ref) *gateway.Attestation {
	return &gateway.Attestation{
		Kind: a.Kind, Metadata: a.Metadata, Ref: ref, Path: a.Path, InTotoPredicateType: a.InTotoPredicateType, InTotoSubjects: a.InTotoSubjects,
	}
}

// Check returns an error for an attestation that cannot be read.
func Check(a *gateway.Attestation) error {
	switch {
	case a.GetRef().GetId() == "":
		return errors.New("it has no ref")
	case a.Kind != gateway.AttestationKind_InToto && a.Kind != gateway.AttestationKind_Bundle:
		return fmt.Errorf("its kind %d is unknown", a.Kind)
	case a.Kind == gateway.AttestationKind_InToto && a.Path == "":
		return errors.New("it has no path")
	}
	_, err := subjectsOf(a)
	return err
}

// subjectsOf returns what an attestation is about.
func subjectsOf(a *gateway.Attestation) ([]attestation.About, error) {
	if len(a.InTotoSubjects) > maxSubjects {
		return nil, fmt.Errorf("it has more than %d subjects", maxSubjects)
	}
	var all []attestation.About
	for _, s := range a.InTotoSubjects {
		of := attestation.About{Resource: attestation.Resource{Name: s.Name}}
		switch s.Kind {
		case gateway.InTotoSubjectKind_Self:
			if of.Self = true; s.Name == attestation.Nameless {
				of.Name = ""
			}
		case gateway.InTotoSubjectKind_Raw:
			if of.Name == "" {
				of.Name = attestation.Nameless
			}
			of.Digest = map[string]string{}
			for _, text := range s.Digest {
				d, err := digest.Parse(text)
				if err != nil {
					return nil, fmt.Errorf("the digest %q of its subject %q: %w", text, s.Name, err)
				}
				of.Digest[d.Algorithm().String()] = d.Encoded()
			}
		default:
			return nil, fmt.Errorf("the kind %d of its subject %q is unknown", s.Kind, s.Name)
		}
		all = append(all, of)
	}
	return all, nil
}

// Given returns an attestation as a build takes it, which reads it when it is wanted.
func (a Attestation) Given() attestation.Given {
	inline := string(a.Metadata[attestations.AttestationInlineOnlyKey]) == strconv.FormatBool(true)
	return attestation.Given{
		InlineOnly: inline, PredicateType: a.InTotoPredicateType,
		Read: func(ctx context.Context, limit int64) ([]attestation.Attestation, error) {
			all, err := a.read(ctx, limit)
			if err != nil {
				return nil, fmt.Errorf("read the attestation %q: %w", a.Path, err)
			}
			core, named := a.Metadata[attestations.AttestationSBOMCore]
			for i := range all {
				name, _, _ := strings.Cut(all[i].File, ".")
				all[i].InlineOnly, all[i].Core = inline, named && name == string(core)
			}
			return all, nil
		},
	}
}

// read reads what is in the file, or the files, of an attestation, at most so many bytes.
func (a Attestation) read(ctx context.Context, limit int64) ([]attestation.Attestation, error) {
	t, err := a.Files(ctx)
	if err != nil {
		return nil, err
	}
	if a.Kind == gateway.AttestationKind_InToto {
		data, err := trees.Read(t, a.Path, limit)
		if err != nil {
			return nil, err
		}
		subjects, err := subjectsOf(a.Attestation)
		return []attestation.Attestation{{
			PredicateType: a.InTotoPredicateType, Predicate: data, Subjects: subjects, File: path.Base(a.Path),
		}}, err
	}
	dir, err := trees.Find(t, "open", a.Path, true)
	if err != nil {
		return nil, err
	}
	list, err := t.List(dir.Path)
	if err != nil {
		return nil, err
	}
	if len(list) > maxBundled {
		return nil, &input.Error{Err: fmt.Errorf("there are more than %d files in it", maxBundled)}
	}
	var all []attestation.Attestation
	for i := range list {
		data, err := trees.Read(t, list[i].Path, limit)
		if err != nil {
			return nil, err
		}
		limit -= int64(len(data))
		s, err := attestation.ParseStatement(data)
		if err == nil && a.InTotoPredicateType != "" && s.PredicateType != a.InTotoPredicateType {
			err = fmt.Errorf("its predicate is of the type %q, and not of %q", s.PredicateType, a.InTotoPredicateType)
		}
		if err != nil {
			return nil, &input.Error{Err: fmt.Errorf("%s: %w", list[i].Path, err)}
		}
		all = append(all, attestation.Attestation{
			PredicateType: s.PredicateType, Predicate: s.Predicate, Subjects: attestation.Subjects(s.Subject), File: list[i].Name(),
		})
	}
	return all, nil
}
