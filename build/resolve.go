package build

import (
	"context"

	"github.com/kilnbuild/kiln/build/bases"
	"github.com/kilnbuild/kiln/build/lookup"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
)

// Resolve is lookup.Source. Place and text say what it is for.
func (j *Job) Resolve(ctx context.Context, op llb.Op, place llb.Place, text string) (f lookup.Found, err error) {
	task := j.events.Task(place, text)
	defer func() { task.Done(err) }()
	return lookup.Source(events.With(ctx, task), j.bases, j.steps.Sources, j.steps.GitObjects, op)
}

// Attested is bases.Bases.Chain.
func (j *Job) Attested(ctx context.Context, op llb.Image, predicates []string) (*bases.Chain, error) {
	return j.bases.Chain(ctx, op, predicates)
}
