package outputs

import (
	"context"
	"fmt"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/engine"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// Engine is where an image is put that goes into one.
type Engine interface {
	// Name is what the engine is called.
	Name() string
	// KeepsBlobs reports whether layers stay there as they come, compressed or not.
	KeepsBlobs() bool
	// TakesIndexes reports whether an image there can be for several platforms.
	TakesIndexes() bool
	// Load puts an image there whose blobs are all in the store.
	Load(ctx context.Context, blobs *exporter.Blobs, a *exporter.Assembled, names []string, p engine.Progress) error
}

// FindEngines finds the engines that what is built goes into, before anything is. scratch is a directory for what is unfinished, and warn
// is told of what an engine cannot hold. The error is an *input.Error.
func FindEngines(ctx context.Context, plans []Plan, platforms int, scratch string, warn func(string)) error {
	for i := range plans {
		if !plans[i].ToEngine() {
			continue
		}
		if err := plans[i].findEngine(ctx, platforms, scratch, warn); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return &input.Error{Err: err}
		}
	}
	return nil
}

// findEngine finds the engine that the image is put into. It warns of what that cannot hold.
func (p *Plan) findEngine(ctx context.Context, platforms int, scratch string, warn func(string)) error {
	var err error
	if p.Type == Storage {
		p.Engine, err = engine.FindStorage(scratch)
	} else if at, findErr := engine.Find(); findErr != nil {
		err = findErr
	} else {
		p.Engine, err = engine.Open(ctx, at)
	}
	if err != nil {
		return fmt.Errorf("%w; -t alone keeps the image in kiln's store, and -o type=docker,dest=FILE writes an archive", err)
	}
	if !p.Engine.TakesIndexes() && p.Attest.Any() {
		warn(fmt.Sprintf("attestations are not loaded: this %s holds an image alone", p.Engine.Name()))
		p.Attest = attestation.Options{}
	}
	if platforms > 1 && !p.Engine.TakesIndexes() {
		return fmt.Errorf("this %s holds one platform under a name: give one --platform, or use type=oci or --push", p.Engine.Name())
	}
	// An engine that unpacks every layer has no use for a compressed one. One that keeps them would push them uncompressed as well.
	if p.Attrs["compression"] == "" && p.Attrs["compression-level"] == "" && p.Engine.KeepsBlobs() {
		p.Form.Layers.Compression, err = blob.ParseCompression("", "")
	}
	return err
}
