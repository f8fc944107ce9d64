package verify

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/lockfile"
	"github.com/kilnbuild/kiln/internal/material"
)

// Lock is a lock file as the list of what an image may be made of.
type Lock struct {
	// Name is what messages call it.
	Name string
	File *lockfile.File
	// AllowUnused accepts lines of which the image has nothing.
	AllowUnused bool

	images map[string]lockfile.Entry // by their package URLs without a platform
}

// usedEntries are the entries of a lock file that an image is made of, by kind and name.
type usedEntries map[entryKey]bool

type entryKey struct {
	kind material.Kind
	name string
}

// provenance verifies the provenance of a build, and that what it was made of is what the lock file has.
func (v *verifier) provenance(s *attestation.Statement, a *Attestation) error {
	p, err := parseProvenance(s)
	if err != nil {
		return err
	}
	a.Builder, a.Materials = p.RunDetails.Builder.ID, len(p.BuildDefinition.ResolvedDependencies)
	if v.request.Lock == nil {
		return nil
	}
	before := len(v.report.Problems)
	for _, m := range p.BuildDefinition.ResolvedDependencies {
		v.material(m, p.BuildDefinition.ExternalParameters.ConfigSource)
	}
	a.Locked = len(v.report.Problems) == before
	return nil
}

// parseProvenance reads provenance of either version. What makes no sense is an error.
func parseProvenance(s *attestation.Statement) (*slsa.Provenance, error) {
	p, err := slsa.Parse(s.PredicateType, s.Predicate)
	if err != nil {
		return nil, fmt.Errorf("read the provenance: %w", err)
	}
	switch {
	case p.BuildDefinition.BuildType == "":
		return nil, errors.New("the provenance does not say what kind of build it was")
	case p.RunDetails.Builder.ID == "":
		return nil, errors.New("the provenance does not say who built it")
	}
	for _, m := range p.BuildDefinition.ResolvedDependencies {
		if m.URI == "" {
			return nil, errors.New("the provenance has a material without a name")
		}
		if len(m.Digest) == 0 {
			return nil, fmt.Errorf("the provenance has the material %.200s without a digest", m.URI)
		}
		for algorithm, d := range m.Digest {
			if _, err := hex.DecodeString(d); err != nil || d == "" || algorithm == "" {
				return nil, fmt.Errorf("the provenance has the material %.200s with the digest %.100q", m.URI, algorithm+":"+d)
			}
		}
	}
	return p, nil
}

// material verifies that a material is one of the lock file, or the build context, which lock files do not have.
func (v *verifier) material(m slsa.Material, context slsa.ConfigSource) {
	lock := v.request.Lock
	e, ok := lock.find(m.URI)
	switch {
	case !ok && context.URI != "" && len(context.Digest) > 0 && maps.Equal(context.Digest, m.Digest) && !strings.HasPrefix(m.URI, "pkg:"):
	case !ok && strings.HasPrefix(m.URI, "pkg:oci/"):
		v.problem("it was made from %.200s, an OCI layout of the machine that built it", m.URI)
	case !ok:
		v.problem("it was made from %.200s, which is not in %s", m.URI, lock.Name)
	default:
		v.used[entryKey{e.Kind, e.Name}] = true
		algorithm, hash, _ := strings.Cut(e.Digest, ":")
		if len(m.Digest) != 1 || m.Digest[algorithm] != hash {
			v.problem("it was made from %.200s with the digest %.200s, and %s has %s", m.URI, attestation.DigestText(m.Digest), lock.Name, e.Digest)
		}
	}
}

// find returns the entry that a material stands for.
func (l *Lock) find(uri string) (lockfile.Entry, bool) {
	if !strings.HasPrefix(uri, "pkg:") {
		for _, kind := range []material.Kind{material.File, material.Git} {
			if e, ok := l.File.Find(kind, uri); ok {
				return e, true
			}
		}
		return lockfile.Entry{}, false
	}
	if l.images == nil {
		l.images = map[string]lockfile.Entry{}
		for _, e := range l.File.Entries() {
			if name, err := imagename.Parse(e.Name); err == nil && e.Kind == material.Image {
				l.images[attestation.ImageURL("docker", name, "")] = e
			}
		}
	}
	path, query, _ := strings.Cut(uri, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return lockfile.Entry{}, false
	}
	platform := values.Get("platform")
	if values.Del("platform"); len(values) > 0 {
		path += "?" + "digest=" + values.Get("digest")
	}
	e, ok := l.images[path]
	if !ok {
		return e, false
	}
	name, err := imagename.Parse(e.Name)
	return e, err == nil && attestation.ImageURL("docker", name, platform) == uri // there is one way to write it
}

// unused says which lines of the lock file no image is made of.
func (v *verifier) unused() {
	lock := v.request.Lock
	if lock.AllowUnused {
		return
	}
	for _, e := range lock.File.Entries() {
		if !v.used[entryKey{e.Kind, e.Name}] {
			v.problem("%s has %s %s, which it was not made from", lock.Name, e.Kind, e.Name)
		}
	}
}
