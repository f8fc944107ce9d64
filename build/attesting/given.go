package attesting

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/version"
)

// errGivenProvenance is the error of provenance from elsewhere: whoever reads it wants to know what the builder says.
var errGivenProvenance = errors.New("provenance is the builder's to write, and not a frontend's")

// given reads the attestations that whoever made the result has of an image, those that are wanted, with the software bill of materials of
// the image itself first. The error of one that cannot be is an *input.Error.
func (a *Attester) given(ctx context.Context, i int, o *attestation.Options) ([]attestation.Attestation, error) {
	if !o.Given || i >= len(a.Given) {
		return nil, nil
	}
	var all []attestation.Attestation
	left := int64(attestation.MaxStatement)
	for _, g := range a.Given[i] {
		if g.InlineOnly && !o.Inline {
			continue
		}
		found, err := g.Read(ctx, left)
		if err != nil {
			return nil, err
		}
		for n := range found {
			f := &found[n]
			if left -= int64(len(f.Predicate)); len(f.Predicate) == 0 {
				f.Predicate = nil // that of an empty file is null
			}
			if strings.HasPrefix(f.PredicateType, slsaPrefix) {
				return nil, &input.Error{Err: fmt.Errorf("attestation %s: %w", f.File, errGivenProvenance)}
			}
			if f.Predicate != nil && !json.Valid(f.Predicate) {
				return nil, &input.Error{Err: fmt.Errorf("attestation %s: it is not JSON", f.File)}
			}
		}
		all = append(all, found...)
	}
	slices.SortStableFunc(all, func(x, y attestation.Attestation) int { return rank(x) - rank(y) })
	return all, nil
}

// slsaPrefix begins the types of predicates that are provenance, whatever their version.
const slsaPrefix = "https://slsa.dev/provenance/"

// rank orders attestations.
func rank(a attestation.Attestation) int {
	if a.Core {
		return 0
	}
	return 1
}

// locate adds to software bills of materials from elsewhere that are of an image itself in which layers the files are, as BuildKit does.
func (a *Attester) locate(ctx context.Context, i int, m exporter.Manifest, all []attestation.Attestation) error {
	if !slices.ContainsFunc(all, func(x attestation.Attestation) bool { return x.Core }) {
		return nil
	}
	parts, err := a.View(ctx, i)
	if err != nil {
		return err
	}
	blobs := map[layer.ID]digest.Digest{}
	for n, l := range m.Layers {
		blobs[l.ID] = m.Manifest.Layers[n].Digest
	}
	find := func(name string) (digest.Digest, bool) {
		name = strings.TrimPrefix(path.Clean("/"+name), "/")
		for n := len(parts) - 1; n >= 0; n-- { // the topmost that has it: a deletion above does not count
			if e, ok := parts[n].Lookup(name); ok && e.Type != layer.Whiteout {
				d, ok := blobs[parts[n].ID]
				return d, ok
			}
		}
		return "", false
	}
	for n := range all {
		if all[n].Core && all[n].PredicateType == attestation.SPDX {
			all[n].Predicate = withLayers(all[n].Predicate, find)
		}
	}
	return nil
}

// withLayers returns an SPDX document in which each file that has no comment says in which layer it is. What is not such a document is
// returned as it is.
func withLayers(document json.RawMessage, find func(name string) (digest.Digest, bool)) json.RawMessage {
	var doc map[string]json.RawMessage
	var files []map[string]json.RawMessage
	if json.Unmarshal(document, &doc) != nil || json.Unmarshal(doc["files"], &files) != nil {
		return document
	}
	for _, f := range files {
		var name, comment string
		if f == nil || json.Unmarshal(f["fileName"], &name) != nil {
			continue
		}
		if f["comment"] != nil && (json.Unmarshal(f["comment"], &comment) != nil || comment != "") {
			continue
		}
		if d, ok := find(name); ok {
			f["comment"], _ = json.Marshal("layerID: " + d.String())
		}
	}
	info := map[string]json.RawMessage{}
	var creators []string
	if json.Unmarshal(doc["creationInfo"], &info) == nil && info != nil && json.Unmarshal(info["creators"], &creators) == nil {
		info["creators"], _ = json.Marshal(append(creators, "Tool: kiln-"+version.String()))
		doc["creationInfo"], _ = json.Marshal(info)
	}
	doc["files"], _ = json.Marshal(files)
	out, err := json.Marshal(doc)
	if err != nil {
		return document
	}
	return out
}
