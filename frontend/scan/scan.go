// Package scan has which root file systems of a build its Dockerfile wants to be in the SBOM of an image, besides that of the image.
package scan

import (
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/frontend/expand"
	"github.com/kilnbuild/kiln/llb"
)

// Root is a root file system to be scanned with an image: a stage by its name, or "context".
type Root struct {
	Name   string
	Output llb.Output
}

// The arguments by which a stage says whether the context, or the stage itself, is scanned.
const (
	Context = "BUILDKIT_SBOM_SCAN_CONTEXT"
	Stage   = "BUILDKIT_SBOM_SCAN_STAGE"
)

// IsArg reports whether an argument is one of them. They are for the builder and never in the environment.
func IsArg(name string) bool { return name == Context || name == Stage }

// Asked reports whether one of the arguments is true for a stage, or a list of names that the stage's is in. args are those of the stage.
func Asked(arg, stage string, args *expand.Args, global *expand.Env) bool {
	value, _ := global.Get(arg)
	if own, ok := args.Get(arg); ok && own.Value != nil {
		value = *own.Value
	}
	if on, err := strconv.ParseBool(value); err == nil {
		return on
	}
	return slices.Contains(strings.Split(value, ","), stage)
}

// OfContext returns the root file system that the build context is.
func OfContext(g *llb.Graph, scratch, context llb.Output) Root {
	place := llb.Meta{Place: llb.Place{Group: "internal"}, Text: "copy the build context for its SBOM"}
	all := llb.Action{Copy: &llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/"}}, Dest: "/"}}
	return Root{"context", g.Add(llb.File{Actions: []llb.Action{all}}, place, scratch, context).Output(0)}
}
