package build

import (
	"context"
	"fmt"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/engine"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// target is where an image is put that goes into an engine.
type target interface {
	// Name is what the engine is called.
	Name() string
	// KeepsBlobs reports whether layers stay there as they come, compressed or not.
	KeepsBlobs() bool
	// TakesIndexes reports whether an image there can be for several platforms.
	TakesIndexes() bool
	// Load puts an image there whose blobs are all in the store.
	Load(ctx context.Context, blobs *exporter.Blobs, a *exporter.Assembled, names []string, p engine.Progress) error
}

// prepare finds the engines that what is built goes into, before anything is. The error is an *input.Error.
func (j *Job) prepare(ctx context.Context) error {
	for i := range j.plans {
		if !j.plans[i].toEngine() {
			continue
		}
		if err := j.plans[i].findTarget(ctx, len(j.options.Target.Platforms), j.work.Scratch.Path(), j.events.Warn); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return &input.Error{Err: err}
		}
	}
	return nil
}

// findTarget finds the engine that the image is put into. It warns of what that cannot hold.
func (p *output) findTarget(ctx context.Context, platforms int, scratch string, warn func(string)) error {
	var err error
	if p.Type == OutputStorage {
		p.target, err = engine.FindStorage(scratch)
	} else if at, findErr := engine.Find(); findErr != nil {
		err = findErr
	} else {
		p.target, err = engine.Open(ctx, at)
	}
	if err != nil {
		return fmt.Errorf("%w; -t alone keeps the image in kiln's store, and -o type=docker,dest=FILE writes an archive", err)
	}
	if !p.target.TakesIndexes() && p.attest.Any() {
		warn(fmt.Sprintf("attestations are not loaded: this %s holds an image alone", p.target.Name()))
		p.attest = attestation.Options{}
	}
	if platforms > 1 && !p.target.TakesIndexes() {
		return fmt.Errorf("this %s holds one platform under a name: give one --platform, or use type=oci or --push", p.target.Name())
	}
	// An engine that unpacks every layer has no use for a compressed one. One that keeps them would push them uncompressed as well.
	if p.Attrs["compression"] == "" && p.Attrs["compression-level"] == "" && p.target.KeepsBlobs() {
		p.form.Layers.Compression, err = blob.ParseCompression("", "")
	}
	return err
}
