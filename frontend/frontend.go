// Package frontend lowers a Dockerfile to the build graph and the configuration of the images it describes; it does not
// know how a step runs, where an image comes from or what is in the build context.
package frontend

import (
	"context"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/linter"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/frontend/imageconfig"
	"github.com/kilnbuild/kiln/frontend/lint"
	"github.com/kilnbuild/kiln/frontend/scan"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/llb"
)

// Options is what a build is asked for beside the Dockerfile.
type Options struct {
	// Filename is the Dockerfile's name as errors show it.
	Filename string
	// Project is that of the steps' llb.Place.
	Project string
	// Target is the stage to build, by name; "" is the last one.
	Target string
	// AllStages says that no step will run, and without a Target also lowers the stages that the last one does not need: all is checked.
	AllStages bool
	// BuildArgs are the values of --build-arg. SOURCE_DATE_EPOCH of the client's environment belongs here as well.
	BuildArgs map[string]string
	// Labels are added to those of the target.
	Labels map[string]string
	// Platforms are the target platforms; none stands for BuildPlatform or, where the base image has one platform only, that.
	Platforms []llb.Platform
	// BuildPlatform is the platform that the build runs on.
	BuildPlatform llb.Platform
	// NoCache runs the steps of all stages again, NoCacheFilter those of the stages that it names.
	NoCache       bool
	NoCacheFilter []string
	// NamedContexts are the values of --build-context by name: a directory, "docker-image://REF", "oci-layout://DIR[:TAG|@DIGEST]",
	// or the address of a git repository or of a file. A directory becomes an llb.Local with the name of its key.
	NamedContexts map[string]string
	source.Elsewhere
	// Source says what is fetched for an llb.Image, llb.HTTP or llb.Git that the Dockerfile or the user names: that, or another one of its
	// kind. An error says that nothing is. written is how the Dockerfile or the user calls it. An llb.Image has no digest before; if Source
	// gives it one, that is of the manifest or index which its name has to stand for. With nil everything is fetched as it is named.
	Source func(written string, op llb.Op) (llb.Op, error)
	// SourceTime resolves a SOURCE_DATE_EPOCH that names a source; with nil no source has a time.
	SourceTime SourceTime
	// CommitTime returns the time of the build context's commit. It is asked where SOURCE_DATE_EPOCH is not set; nil where that may be.
	CommitTime func(context.Context) (time.Time, error)
	// Network is that of the RUNs without a --network of their own; "" is llb.NetworkDefault.
	Network llb.Network
	// RunOptions are those of all RUNs.
	llb.RunOptions
	// Allow are the entitlements that are granted: "network.host", "security.insecure", "device", "device=NAME". A Network of host grants
	// the first.
	Allow []string
	// NoInsecure is why no RUN may have --security=insecure, whatever is allowed; "" if it may.
	NoInsecure string
	// Ignore is the .dockerignore of the build context, for the check that warns of sources which it excludes; may be nil.
	Ignore *ignore.Matcher
}

// ImageRequest asks for an image of one platform.
type ImageRequest struct {
	// Ref is a whole reference, "docker.io/library/debian:bookworm", or in an OCI layout a tag or a digest.
	Ref string
	// Digest is that of the manifest or index that Ref has to stand for; "" for whatever it stands for now.
	Digest string
	// Layout is the directory of an OCI layout; "" for a registry or the local store.
	Layout   string
	Platform llb.Platform
	// Pull is as in llb.Image.
	Pull llb.Pull
	// Place and Text are for progress, as in llb.Meta.
	Place llb.Place
	Text  string
}

// BaseImage is an image that was found.
type BaseImage struct {
	// Ref is the name that it was found by, if that is not the requested one.
	Ref string
	// Digest is that of the manifest of one platform, "sha256:…".
	Digest string
	// Config is the whole image configuration.
	Config dockerspec.DockerOCIImage
}

// Resolver finds images.
type Resolver interface {
	// ResolveImage returns the image for req. Of an index it takes the requested platform, and it is an error where that is
	// missing; an image without an index is taken whatever its platform is. It is called by several goroutines.
	ResolveImage(ctx context.Context, req ImageRequest) (*BaseImage, error)
}

// Result is what Build returns.
type Result struct {
	// Images has an element for each of Options.Platforms, in that order, one where there is none.
	Images []Image
	// Warnings are the findings of the checks, each once, in the order of the lines.
	Warnings []lint.Warning
	// Epoch is SOURCE_DATE_EPOCH in Unix seconds, from the build arguments or the Dockerfile; nil where it is not set.
	Epoch *int64
}

// Image is the lowered target for one platform.
type Image struct {
	// Platform is that of the image's configuration.
	Platform llb.Platform
	// Root is the vertex of the root file system; an llb.Scratch for an image without layers.
	Root llb.Output
	// Config is the image configuration without platform, times, root file system and history.
	Config dockerspec.DockerOCIImageConfig
	Author string
	// History begins with that of the base image. From there on it has one entry that is not Empty for each vertex from the
	// base to Root along the first inputs, in that order.
	History []imageconfig.History
	// Scan are other root file systems that the Dockerfile wants to be in the image's SBOM.
	Scan []scan.Root
}

// Build lowers the Dockerfile for o.Platforms. Errors that a line is to blame for are of type *parser.Error; a Result with
// the warnings found so far comes with an error as well, but for the end of ctx.
func Build(ctx context.Context, dockerfile []byte, o Options, r Resolver) (*Result, error) {
	res := &Result{}
	if o.Filename == "" {
		o.Filename = "Dockerfile"
	}
	o.BuildPlatform = o.BuildPlatform.Normalize()
	if err := source.CheckSyntax(o.Filename, dockerfile, o.BuildArgs); err != nil {
		return res, err
	}
	if err := source.CheckArgs(o.BuildArgs); err != nil {
		return res, err
	}
	check, warnings, err := lint.New(dockerfile, o.Filename, o.BuildArgs)
	if err != nil {
		return res, err
	}
	platforms := o.Platforms
	if len(platforms) == 0 {
		platforms = []llb.Platform{o.BuildPlatform}
	}
	graph := &llb.Graph{}
	images := &images{resolver: r}
	for i, p := range platforms {
		b := &builder{ctx: ctx, opts: &o, graph: graph, images: images, check: check, target: p.Normalize(), runs: !o.AllStages}
		if i > 0 {
			b.check = linter.New(&linter.Config{}) // as in BuildKit, the first platform is checked alone
		}
		image, err := b.build(dockerfile)
		if ctx.Err() != nil {
			return res, context.Cause(ctx) // the parser may still be finding what to warn of
		}
		res.Warnings = warnings.Sorted()
		if err != nil {
			return res, b.failed(err)
		}
		res.Images = append(res.Images, *image)
		res.Epoch = b.epoch
	}
	if err := lint.Error(check, o.Filename); err != nil {
		return res, err
	}
	return res, nil
}
