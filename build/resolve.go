package build

import (
	"context"

	"github.com/kilnbuild/kiln/build/bases"
	"github.com/kilnbuild/kiln/build/lookup"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
)

// Resolve is lookup.Source. Place and text say what it is for. A commit is fetched if objects are wanted.
func (j *Job) Resolve(ctx context.Context, op llb.Op, objects bool, place llb.Place, text string) (f lookup.Found, err error) {
	task := j.events.Task(place, text)
	defer func() { task.Done(err) }()
	var fetch lookup.Objects
	if objects {
		fetch = j.steps.GitObjects
	}
	return lookup.Source(events.With(ctx, task), j.bases, j.steps.Sources, fetch, op)
}

// Attested is bases.Bases.Chain.
func (j *Job) Attested(ctx context.Context, op llb.Image, predicates []string) (*bases.Chain, error) {
	return j.bases.Chain(ctx, op, predicates)
}
