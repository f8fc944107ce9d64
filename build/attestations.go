package build

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/build/outputs"
	"github.com/kilnbuild/kiln/build/provenance"
	"github.com/kilnbuild/kiln/build/scanning"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/sbom"
)

// described is what provenance says of the build.
func (j *Job) described() *provenance.Build {
	p := j.product
	b := &provenance.Build{
		ID: j.attester.ID, Started: j.attester.Started, Images: p.Images, Materials: j.sources.Materials(), VCS: j.attester.VCS(),
		Dockerfile: p.Dockerfile, Filename: p.Name, API: p.API,
	}
	r := p.Request
	if r == nil {
		return b
	}
	b.Context = r.Source.Context
	if len(r.VCS) > 0 {
		b.VCS = r.VCS
	}
	b.LocalContext, b.LocalDockerfile = r.Source.OfClient()
	b.Request = provenance.Request{
		Target: r.Target.Stage, Args: r.Target.Args, Labels: r.Target.Labels, Named: r.Source.Named,
		NoCache: r.NoCache, NoCacheFor: r.NoCacheFor, Network: r.Network, RunOptions: r.RunOptions,
	}
	if !filepath.IsLocal(b.Filename) {
		b.Filename = filepath.Base(b.Filename) // where it is on the client concerns nobody else
	}
	return b
}

// Provenance returns all that is known of how each image of the product was made, in SLSA provenance's version 1. It is for after Export.
func (j *Job) Provenance() ([][]byte, error) { return j.attester.Whole() }

// scan returns the software bill of materials of an image by its index.
func (j *Job) scan(ctx context.Context, i int) ([]attestation.Attestation, error) {
	img, err := j.image(ctx, i)
	if err != nil {
		return nil, err
	}
	return j.attester.Scanning.Scan(ctx, &j.product.Images[i], j.chains[i], img.Config.Created)
}

// scanner returns what makes the software bills of materials of the build.
func (j *Job) scanner() *scanning.Scanning {
	return &scanning.Scanning{
		Options: j.options.Export.Attest.SBOM, Steps: j.steps, Layer: j.layers.Files, Resolver: j.bases, Admit: j.sources.Admit, Events: j.events,
		Builtin: &sbom.Scanner{Root: j.builder.root.Dir(), Tmp: j.work.Scratch.Path(), Warn: j.events.Warn},
	}
}

// attestedFiles returns the files of an image by its index, and those that attest them, whose names name makes.
func (j *Job) attestedFiles(ctx context.Context, i int, out outputs.Plan, name func(string) string) (layer.Tree, error) {
	tree, err := j.steps.Files(ctx, j.chains[i])
	if err != nil {
		return nil, err
	}
	if out.Source != "" {
		if tree, err = contexts.Subdir(tree, out.Source); err != nil {
			return nil, &input.Error{Err: fmt.Errorf("src=%s: %w", out.Source, err)}
		}
	}
	return j.attester.Files(ctx, i, tree, &out.Attest, name, out.Files.Epoch)
}
