package attestation

import (
	"context"

	"github.com/kilnbuild/kiln/internal/layer"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// Scanner makes software bills of materials.
type Scanner interface {
	// Scan returns what is known of the packages in an image: documents of SPDX, the one about the image first. What it finds to be damaged
	// in the image is no error.
	Scan(ctx context.Context, image Scanned) ([]Attestation, error)
}

// Scanned is an image to be scanned.
type Scanned struct {
	// Layers are those of its root file system, the lowest first.
	Layers []layer.ID
	// Config is its configuration without the root file system.
	Config dockerspec.DockerOCIImage
	// Platform is that of the image, "linux/arm64".
	Platform string
}
