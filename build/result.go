package build

import (
	"github.com/kilnbuild/kiln/build/reproduce"
	"github.com/kilnbuild/kiln/build/sources"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/material"
	"github.com/kilnbuild/kiln/llb"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Result is what a build made.
type Result struct {
	// ImageID is the digest of the image's config, or for several platforms that of the index; "" where no image was made.
	ImageID string
	// Digest is that of the manifest or index.
	Digest string
	desc   ocispec.Descriptor
	made   map[int]ocispec.Descriptor
	// id is that of the build in the history, and provenance what Metadata has of it.
	id         string
	provenance map[string]any
	// Names are the image's names in full.
	Names []string
	// layers are those that steps made, with their sizes in the form of the last output that is an image.
	layers []events.LayerSize
	// Dockerfile is the text that was built, and DockerfileName what errors call it; empty where the build did not get that far.
	Dockerfile     []byte
	DockerfileName string
	// Warnings are the findings of the checks. A build that failed has those that were found before.
	Warnings []Warning
	// Materials are what the build took from elsewhere, by kind, name and platform. A build that failed has those that it had found by then.
	Materials []material.Material
	// Verified are the steps that ran again for Caching.Verify.
	Verified []reproduce.Step
	// Twice says that they ran for Caching.Twice.
	Twice bool
	// Lock is what CallLock asks for.
	Lock *sources.Relocked
	// Outline and Targets are what CallOutline and CallTargets ask for.
	Outline *Outline
	Targets *TargetList
}

// Warning is what a check found in a Dockerfile.
type Warning struct {
	// Rule is the check's name, for example "JSONArgsRecommended".
	Rule string
	// Message says what is wrong with this Dockerfile; Description what the rule is about; URL where to read more.
	Message     string
	Description string
	URL         string
	Location    llb.Location
	// Known says that the last build of the Dockerfile had the same warning.
	Known bool
	// Advice says that BuildKit has no such check, so that it alone makes no check fail.
	Advice bool
}
