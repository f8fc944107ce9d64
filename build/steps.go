package build

import (
	"context"
	"errors"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/plan"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/store"
)

// steps plan and execute the steps of one build.
type steps struct {
	*plan.Planner
	*execute.Job
}

// steps returns what plans and executes the steps of the build that a session is of.
func (b *Builder) steps(work *store.Work, sharedProc bool, s *session.Session, o execute.Options) *steps {
	x := execute.New(execute.Config{
		Snapshots: work.Layers, CDIDirs: b.cdiDirs, SharedProc: sharedProc, Root: b.root.Dir(), Tmp: work.Scratch.Path(),
	})
	job := x.Job(s, o)
	return &steps{&plan.Planner{Layers: job, Sources: job, Session: s, Tmp: x.Tmp, Limit: b.root.Archive}, job}
}

// end is called when no step runs any more. When ctx ends, what steps sent is no longer waited for.
func (s *steps) end(ctx context.Context) error {
	return errors.Join(s.Job.Close(), s.Executor.Close(ctx))
}

// packer makes layers blobs of the one form that outputs need. It implements execute.Blobs.
type packer struct {
	blobs *exporter.Blobs
	form  exporter.LayerForm
}

// Create implements execute.Blobs.
func (p packer) Create(ctx context.Context, _, id string) (execute.Blob, error) {
	return p.blobs.Pack(ctx, id, p.form)
}

// pack returns what outputs need of the layers of their images. If that is blobs of one form alone, layers are made as those.
func (s *steps) pack(blobs *exporter.Blobs, outputs []output) solver.Demand {
	for _, out := range outputs {
		if out.Type == OutputLocal || out.Type == OutputTar {
			return solver.Demand{Files: true}
		}
	}
	form, ok := onlyForm(outputs)
	if !ok {
		return solver.Demand{}
	}
	s.Blobs = packer{blobs, form}
	return solver.Demand{Blob: form.String()}
}
