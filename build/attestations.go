package build

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/build/provenance"
	"github.com/kilnbuild/kiln/build/scanning"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/sbom"
)

// setAttestations decides which of the attestations that the build makes an output gets.
func (p *output) setAttestations(o *attestation.Options) error {
	inline := p.Type == OutputImage || p.Type == OutputRegistry || p.toEngine()
	if o.Provenance != nil && (inline || !o.Provenance.InlineOnly) {
		p.attest.Provenance = o.Provenance
	}
	if o.SBOM != nil && (inline || !o.SBOM.InlineOnly) {
		p.attest.SBOM = o.SBOM
	}
	switch {
	case p.Type == OutputCacheOnly || !p.attest.Any():
		p.attest = attestation.Options{}
	case p.Type == OutputDocker && p.Dest != "":
		return errors.New("a tar for docker load holds no attestations: use type=oci, which current dockers load, or leave them out " +
			"with inline-only=true")
	case p.form.Docker:
		return fmt.Errorf("output %s: oci-mediatypes=false, and Docker's media types have no attestations", p.Type)
	}
	return nil
}

// described is what provenance says of the build.
func (j *Job) described() *provenance.Build {
	o := &j.options
	local, localFile := o.Source.OfClient()
	b := &provenance.Build{
		ID: j.attester.ID, Started: j.attester.Started, Context: o.Source.Context, LocalContext: local,
		Dockerfile: j.loader.Open.Dockerfile, Filename: j.loader.Open.Name, LocalDockerfile: localFile,
		Request: provenance.Request{
			Target: o.Target.Stage, Args: o.Target.Args, Labels: o.Target.Labels, Named: o.Source.Named,
			NoCache: o.Cache.Off, NoCacheFor: o.Cache.OffFor, Network: o.Run.Network, RunOptions: o.Run.RunOptions,
		},
		Images: j.lowered.Images, Materials: j.sources.Materials(), VCS: j.attester.VCS(),
	}
	if !filepath.IsLocal(b.Filename) {
		b.Filename = filepath.Base(b.Filename) // where it is on the client concerns nobody else
	}
	return b
}

// scan returns the software bill of materials of an image by its index.
func (j *Job) scan(ctx context.Context, i int) ([]attestation.Attestation, error) {
	img, err := j.image(ctx, i)
	if err != nil {
		return nil, err
	}
	return j.attester.Scanning.Scan(ctx, &j.lowered.Images[i], j.chains[i], img.Config.Created)
}

// scanner returns what makes the software bills of materials of the build.
func (j *Job) scanner() *scanning.Scanning {
	return &scanning.Scanning{
		Options: j.options.Export.Attest.SBOM, Steps: j.steps, Layer: j.layers.Files, Resolver: j.bases, Admit: j.sources.Admit, Events: j.events,
		Builtin: &sbom.Scanner{Root: j.builder.root.Dir(), Tmp: j.work.Scratch.Path(), Warn: j.events.Warn},
	}
}

// attestedFiles returns the files of an image by its index, and those that attest them.
func (j *Job) attestedFiles(ctx context.Context, i int, out output) (layer.Tree, error) {
	tree, err := j.steps.Files(ctx, j.chains[i])
	if err != nil {
		return nil, err
	}
	return j.attester.Files(ctx, i, tree, &out.attest, out.attestPrefix, out.files.Epoch)
}
