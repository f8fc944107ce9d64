package build

import (
	"context"

	"github.com/kilnbuild/kiln/solver/container"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/work"
)

// Container prepares processes over root file systems of the job that are no step. It is to be closed before the job ends.
func (j *Job) Container(ctx context.Context, w work.Exec) (*container.Container, error) {
	return container.New(ctx, j.steps.Job, w)
}

// Left returns what a step has left of which the error is that it failed; nil if it is of none.
func (j *Job) Left(err error) *execute.Left { return j.steps.Left(err) }
