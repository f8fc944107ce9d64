package build

import "github.com/kilnbuild/kiln/frontend/outline"

// What --call outline and targets return, whose JSON is that of BuildKit's subrequests.
type (
	Outline        = outline.Outline
	OutlineMount   = outline.Mount
	TargetList     = outline.TargetList
	SourceLocation = outline.Location
)

// NewSourceLocation returns the lines from start to end, nil for none.
func NewSourceLocation(start, end int) *SourceLocation { return outline.Lines(start, end) }
