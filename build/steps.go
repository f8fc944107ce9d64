package build

import (
	"context"
	"errors"
	"io"

	"github.com/kilnbuild/kiln/build/outputs"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/plan"
)

// steps plan and execute the steps of a job. They implement contexts.Steps.
type steps struct {
	*plan.Planner
	*execute.Job
	job *Job
}

// steps returns what plans and executes the steps of a job.
func (b *Builder) steps(j *Job, o execute.Options) *steps {
	x := execute.New(execute.Config{
		CDIDirs: b.cdiDirs, SharedProc: j.sharedProc, Root: b.root.Dir(), Tmp: j.work.Scratch.Path(),
	})
	o.Snapshots = j.layers
	job := x.Job(j.session, o)
	return &steps{&plan.Planner{Layers: job, Sources: j.sources.Planned(job), Session: j.session, Tmp: x.Tmp, Limit: b.root.Archive}, job, j}
}

// Solve implements contexts.Steps.
func (s *steps) Solve(ctx context.Context, o llb.Output) (solver.Ref, error) {
	out, err := solver.Solve(ctx, []llb.Output{o}, s.job.solving())
	if err != nil {
		return solver.Ref{}, err
	}
	return out[0], nil
}

// File implements contexts.Steps. What is read of the client is reported as a task.
func (s *steps) File(ctx context.Context, name string, body io.Reader) (solver.Ref, error) {
	task := s.job.events.Task(llb.Place{Group: "internal"}, "load build context from standard input")
	count, end := task.Counting("context", events.Moving, 0)
	ref, err := s.Job.File(events.With(ctx, task), name, counter{body, count})
	end()
	task.Done(err)
	return ref, err
}

// counter is a reader that counts what is read.
type counter struct {
	io.Reader
	count func(n int64)
}

func (c counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.count(int64(n))
	return n, err
}

// Files implements contexts.Steps: it makes the layers of a root file system, where they are missing, and returns its files.
func (s *steps) Files(ctx context.Context, r solver.Ref) (layer.Tree, error) {
	ids, err := s.Realise(ctx, r)
	if err != nil {
		return nil, err
	}
	return s.job.layers.Stack(ctx, ids)
}

// layer returns the files of one layer.
func (s *steps) layer(ctx context.Context, l solver.Layer) (layer.Tree, error) {
	return s.Files(ctx, solver.Ref{}.Push(l))
}

// end is called when no step runs any more. When ctx ends, what steps sent is no longer waited for.
func (s *steps) end(ctx context.Context) error {
	return errors.Join(s.Job.Close(), s.Executor.Close(ctx))
}

// pack returns what outputs need of the layers of their images. If that is blobs of one form alone, layers are made as those.
func (s *steps) pack(plans []outputs.Plan) solver.Demand {
	for _, out := range plans {
		if out.Type == outputs.Local || out.Type == outputs.Tar {
			return solver.Demand{Files: true}
		}
	}
	form, ok := outputs.OnlyForm(plans)
	if !ok {
		return solver.Demand{}
	}
	s.Blob = &form
	return solver.Demand{Blob: form.String()}
}
