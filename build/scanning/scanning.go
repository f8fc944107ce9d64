// Package scanning makes the software bills of materials of a build: by the built-in scanner, or by an image that is one and speaks the
// protocol of BuildKit's scanners.
package scanning

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sbom"
	"github.com/kilnbuild/kiln/solver"
)

// Steps does steps, and reads what they made.
type Steps interface {
	Solve(ctx context.Context, o llb.Output) (solver.Ref, error)
	// Bring makes the files of a layer available.
	Bring(ctx context.Context, id layer.ID) error
	// View returns the layers of a root that have entries, with their manifests, the lowest first.
	View(ctx context.Context, r solver.Ref) ([]layer.Part, error)
	// Files returns the files of a root.
	Files(ctx context.Context, r solver.Ref) (layer.Tree, error)
}

// Scanning makes the software bills of materials of a build.
type Scanning struct {
	Options *attestation.SBOM
	Steps   Steps
	// Layer returns the files of a layer.
	Layer func(ctx context.Context, id layer.ID) (layer.Files, error)
	// Resolver finds the image of a generator, which is what Admit puts in its place, if it does not refuse it.
	Resolver frontend.Resolver
	Admit    func(op llb.Op) (llb.Op, error)
	// Builtin is the built-in scanner.
	Builtin *sbom.Scanner
	Events  *events.Stream

	generator *generator // once Resolve was called, if Options names one
}

// With returns the roots of a build with those that are only scanned. s may be nil.
func (s *Scanning) With(roots []llb.Output, images []frontend.Image) []llb.Output {
	if s == nil {
		return roots
	}
	roots = slices.Clone(roots)
	for _, img := range images {
		for _, extra := range img.Scan {
			roots = append(roots, extra.Output)
		}
	}
	return roots
}

// core is the name of the document about the image itself; those about other root file systems of the build begin with it and a hyphen.
const core = "sbom"

// Scan returns the software bills of materials of a lowered image, whose root file system is root: that of the image first, then those of
// stages and the context that the Dockerfile asks for. created is the time of the image; nil for none.
func (s *Scanning) Scan(ctx context.Context, img *frontend.Image, root solver.Ref, created *time.Time) ([]attestation.Attestation, error) {
	if s.Options.Generator != "" {
		if err := s.Resolve(ctx); err != nil {
			return nil, err
		}
		return s.generate(ctx, img)
	}
	at := time.Unix(0, 0)
	if created != nil {
		at = *created
	}
	doc, err := s.document(ctx, core, root, img.Platform, at)
	if err != nil {
		return nil, err
	}
	all := []attestation.Attestation{*doc}
	for _, extra := range img.Scan {
		root, err := s.Steps.Solve(ctx, extra.Output)
		if err != nil {
			return nil, err
		}
		doc, err := s.document(ctx, core+"-"+extra.Name, root, img.Platform, at)
		if err != nil {
			return nil, err
		}
		all = append(all, *doc)
	}
	return all, nil
}

// document scans one root file system.
func (s *Scanning) document(
	ctx context.Context, name string, root solver.Ref, platform llb.Platform, created time.Time,
) (_ *attestation.Attestation, err error) {
	task := s.Events.Task(llb.Place{}, fmt.Sprintf("[%s] scanning for %s", platform, name))
	defer func() { task.Done(err) }()
	ctx = events.With(ctx, task)
	img := &sbom.Image{
		Name: name, Created: created,
		Bring: s.Steps.Bring,
		View:  func(ctx context.Context) ([]layer.Part, error) { return s.Steps.View(ctx, root) },
		Files: s.Layer,
	}
	for _, l := range root.Changes() {
		img.Layers = append(img.Layers, layer.ID(l.ID))
	}
	scanned := 0
	scanner := *s.Builtin
	scanner.Scanned = func(layer.ID) { scanned++ }
	predicate, err := scanner.Scan(ctx, img)
	if err != nil {
		return nil, err
	}
	task.Note(fmt.Sprintf("scanned %d of %d layers", scanned, len(img.Layers)))
	return &attestation.Attestation{
		PredicateType: attestation.SPDX, Predicate: predicate, File: name + ".spdx.json", InlineOnly: s.Options.InlineOnly,
	}, nil
}
