// Package attesting makes the attestations of one build: it describes the build, has images scanned, and puts what is known into the form
// that an output has for it.
package attesting

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/attestation/slsa"
	"github.com/kilnbuild/kiln/build/provenance"
	"github.com/kilnbuild/kiln/build/scanning"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/frontend/imageconfig"
	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Attester makes the attestations of a build.
type Attester struct {
	Options *attestation.Options
	// Build describes the build, as far as it is known by then.
	Build func() *provenance.Build
	// Scan returns the software bill of materials of an image by its index.
	Scan func(ctx context.Context, i int) ([]attestation.Attestation, error)
	// Scanning has images scanned; nil where no SBOM is asked for.
	Scanning *scanning.Scanning
	// Given are attestations from elsewhere, by the indexes of images.
	Given [][]attestation.Given
	// View returns the layers of an image by its index, the lowest first.
	View func(ctx context.Context, i int) ([]layer.Part, error)
	// ID is that of the build in the history, and Started when it began.
	ID      string
	Started time.Time

	scanned map[int][]attestation.Attestation
	// way is what Way has added, and depths how many layers that has.
	way    []llb.Output
	depths map[llb.Output]int
	// finished is when the build was first described: all outputs say the same.
	finished time.Time
	vcs      func() map[string]string
}

// Describe finds out what the checkout is that a directory is in, while the build goes on: it is for provenance, of attestations or of the
// metadata of the build. dir is "" for a context that is not a directory.
func (a *Attester) Describe(ctx context.Context, dir string, metadata bool) {
	if dir == "" || a.Options.NoVCS || a.Options.Provenance == nil && !metadata {
		return
	}
	a.vcs = sync.OnceValue(func() map[string]string {
		vcs := map[string]string{}
		c := git.DescribeCheckout(ctx, dir)
		for name, value := range map[string]string{"revision": c.Revision, "source": c.Origin} {
			if value != "" {
				vcs[name] = value
			}
		}
		return vcs
	})
	go a.vcs()
}

// VCS returns what Describe has found out, as provenance.Build has it.
func (a *Attester) VCS() map[string]string {
	if a.vcs == nil {
		return nil
	}
	return a.vcs()
}

// Way returns the roots of images, and then the root file systems on the way to those whose history does not say of each step on it that it
// made a layer: to solve these as well is no more work.
func (a *Attester) Way(roots []llb.Output, images []frontend.Image) []llb.Output {
	a.way = nil
	for _, img := range images {
		way := []llb.Output{img.Root}
		for o, ok := img.Root.Base(); ok; o, ok = o.Base() {
			way = append(way, o)
		}
		if imageconfig.Vertices(img.History) < len(way)-1 {
			a.way = append(a.way, way...)
		}
	}
	return slices.Concat(roots, a.way)
}

// Solved notes what became of what Way has returned, and returns that of the roots; nil if nothing did.
func (a *Attester) Solved(all []solver.Ref) (roots []solver.Ref) {
	if len(all) == 0 {
		return nil
	}
	roots = all[:len(all)-len(a.way)]
	a.depths = map[llb.Output]int{}
	for i, o := range a.way {
		a.depths[o] = all[len(roots)+i].Depth()
	}
	return roots
}

// build describes the build, as far as it is known by now.
func (a *Attester) build() *provenance.Build {
	b := a.Build()
	b.Depths = a.depths
	return b
}

// CheckComplete returns an error if the user wants nothing to be used that is no material, and the build does. It is an *input.Error.
func (a *Attester) CheckComplete() error {
	if p := a.Options.Provenance; p == nil || !p.Complete {
		return nil
	}
	b := a.build()
	for i := range b.Images {
		if locals := b.LocalSources(i); len(locals) > 0 {
			return &input.Error{Err: fmt.Errorf("provenance with complete-materials=true: the build reads the %s of this machine, "+
				"which nobody else has: build from a git repository or a URL", locals[0])}
		}
	}
	return nil
}

// attestations returns what is said of an image by its index, whose layers have these blobs, the lowest first; nil where the output is
// files.
func (a *Attester) attestations(
	ctx context.Context, i int, o *attestation.Options, layers []ocispec.Descriptor,
) ([]attestation.Attestation, error) {
	all, err := a.given(ctx, i, o)
	if err != nil {
		return nil, err
	}
	if o.SBOM != nil {
		found, known := a.scanned[i]
		if !known {
			var err error
			if found, err = a.Scan(ctx, i); err != nil {
				return nil, fmt.Errorf("scan the image for its SBOM: %w", err)
			}
			if a.scanned == nil {
				a.scanned = map[int][]attestation.Attestation{}
			}
			a.scanned[i] = found
		}
		all = append(all, found...)
	}
	if p := o.Provenance; p != nil {
		predicate, err := a.build().Of(i, layers, a.end(), p)
		if err != nil {
			return nil, fmt.Errorf("describe the build: %w", err)
		}
		data, err := slsa.Encode(predicate)
		if err != nil {
			return nil, err
		}
		all = append(all, attestation.Attestation{PredicateType: p.PredicateType, Predicate: data, File: p.File, InlineOnly: p.InlineOnly})
	}
	return all, nil
}

// Manifests returns the manifests of statements about images, in their order, for those of which something is said; none if o asks for
// none. names are those that the images get,
// and artifact is as for exporter.Blobs.Attest.
func (a *Attester) Manifests(
	ctx context.Context, blobs *exporter.Blobs, images []exporter.Manifest, names []string, o *attestation.Options, artifact bool,
) ([]exporter.Manifest, error) {
	if !o.Any() {
		return nil, nil
	}
	var all []exporter.Manifest
	for i, m := range images {
		found, err := a.attestations(ctx, i, o, m.Manifest.Layers)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			continue
		}
		if err := a.locate(ctx, i, m, found); err != nil {
			return nil, err
		}
		self, err := subjects(names, a.build().Images[i].Platform, m.Desc.Digest)
		if err != nil {
			return nil, err
		}
		var statements []attestation.Statement
		for _, f := range found {
			statements = append(statements, f.Statement(self))
		}
		made, err := blobs.Attest(m, statements, artifact)
		if err != nil {
			return nil, err
		}
		all = append(all, *made)
	}
	return all, nil
}

// end returns when the build was finished.
func (a *Attester) end() time.Time {
	if a.finished.IsZero() {
		a.finished = time.Now()
	}
	return a.finished
}

// subjects returns an image under its names.
func subjects(names []string, p llb.Platform, d digest.Digest) ([]attestation.Resource, error) {
	var all []attestation.Resource
	for _, name := range names {
		ref, err := imagename.Parse(name)
		if err != nil {
			return nil, err
		}
		all = append(all, attestation.Resource{Name: attestation.ImageURL("docker", ref, p.String()), Digest: attestation.Digests(d)})
	}
	if len(all) == 0 {
		all = append(all, attestation.Resource{Name: attestation.Nameless, Digest: attestation.Digests(d)})
	}
	return all, nil
}

// Files returns the files of an image by its index with those that attest them, whose names name makes and whose time is epoch if it is not
// nil.
func (a *Attester) Files(
	ctx context.Context, i int, tree layer.Tree, o *attestation.Options, name func(file string) string, epoch *time.Time,
) (layer.Tree, error) {
	if !o.Any() {
		return tree, nil
	}
	found, err := a.attestations(ctx, i, o, nil)
	if err != nil {
		return nil, err
	}
	var all []exporter.NamedStatement
	for _, f := range found {
		all = append(all, exporter.NamedStatement{Name: name(f.File), Attestation: f})
	}
	when := a.end()
	switch p := o.Provenance; {
	case epoch != nil:
		when = *epoch
	case p != nil && p.Anonymous:
		when = time.Unix(0, 0)
	}
	return exporter.WithStatements(ctx, tree, all, when)
}

// Whole returns all that is known of how each image was made, as predicates of SLSA provenance in version 1: for records of the build.
func (a *Attester) Whole() ([][]byte, error) {
	o := attestation.Provenance{Max: true, PredicateType: attestation.SLSA1}
	if asked := a.Options.Provenance; asked != nil {
		o.BuilderID = asked.BuilderID
	}
	b := a.build()
	var all [][]byte
	for i := range b.Images {
		predicate, err := b.Of(i, nil, a.end(), &o)
		if err != nil {
			return nil, fmt.Errorf("describe the build: %w", err)
		}
		data, err := slsa.Encode(predicate)
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

// Metadata returns the provenance that the metadata of a build has, by its keys, as buildx writes it: in version 0.2. max is as in
// attestation.Provenance.
func (a *Attester) Metadata(max bool) (map[string]any, error) {
	o := attestation.Provenance{Max: max, PredicateType: attestation.SLSA02}
	if asked := a.Options.Provenance; asked != nil {
		o.BuilderID, o.Reproducible, o.Anonymous = asked.BuilderID, asked.Reproducible, asked.Anonymous
	}
	b := a.build()
	all := map[string]any{}
	for i, img := range b.Images {
		key := "buildx.build.provenance"
		if len(b.Images) > 1 {
			key += "/" + img.Platform.String()
		}
		predicate, err := b.Of(i, nil, a.end(), &o)
		if err != nil {
			return nil, fmt.Errorf("describe the build: %w", err)
		}
		p, ok := predicate.(*slsa.Provenance02)
		if !ok {
			return nil, errors.New("BUG: provenance of another version")
		}
		if !max {
			p.Metadata = nil
		}
		all[key] = p
	}
	return all, nil
}
