package build

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/build/imaging"
	"github.com/kilnbuild/kiln/build/outputs"
	"github.com/kilnbuild/kiln/build/provenance"
	"github.com/kilnbuild/kiln/build/scanning"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/sbom"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
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
	epoch := j.product.Epoch
	for n := 0; epoch == nil && n < len(j.plans); n++ {
		epoch = j.plans[n].Epoch
	}
	img, err := j.image(ctx, i, nil, epoch)
	if err != nil {
		return nil, err
	}
	return j.attester.Scanning.Scan(ctx, &j.product.Images[i], j.chains[i], img.Config.Created)
}

// view returns the layers of an image by its index.
func (j *Job) view(ctx context.Context, i int) ([]layer.Part, error) {
	return j.steps.View(ctx, j.chains[i])
}

// image describes an image by its index to the exporter: with a configuration from elsewhere unless that is nil, and with an epoch.
func (j *Job) image(ctx context.Context, i int, config *dockerspec.DockerOCIImage, epoch *int64) (exporter.Image, error) {
	p := j.product
	img := &p.Images[i]
	if config != nil {
		other := imaging.ImageOf(img.Root, config, nil)
		if other.Platform.OS == "" {
			other.Platform = img.Platform
		}
		img = &other
	}
	dockerfile := p.Request != nil && config == nil
	if dockerfile && epoch == nil {
		epoch = p.Epoch // which is in the configuration, whatever the output does
	}
	return (&imaging.Imager{Bases: j.bases, Caches: j.caches}).Image(ctx, img, j.chains[i], dockerfile, epoch)
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
