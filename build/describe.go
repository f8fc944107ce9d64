package build

import "github.com/kilnbuild/kiln/frontend"

// What --call outline and targets return, whose JSON is that of BuildKit's subrequests.
type (
	Outline        = frontend.Outline
	OutlineMount   = frontend.OutlineMount
	TargetList     = frontend.TargetList
	SourceLocation = frontend.SourceLocation
)

// NewSourceLocation returns the lines from start to end, nil for none.
func NewSourceLocation(start, end int) *SourceLocation { return frontend.NewSourceLocation(start, end) }
