package build

import (
	"context"
	"io"

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
	*execute.Executor
}

// steps returns what plans and executes the steps of the build that a session is of.
func (b *Builder) steps(work *store.Work, c execute.Config, s *session.Session) *steps {
	c.Snapshots, c.CDIDirs, c.Root, c.Tmp = work.Layers, b.cdiDirs, b.root.Dir(), work.Scratch.Path()
	x := execute.New(c, s)
	return &steps{&plan.Planner{Layers: x, Sources: x, Session: s, Tmp: c.Tmp, Limit: b.root.Archive}, x}
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
	s.Pack = func(ctx context.Context, _, id string, tar func(io.Writer) error) (string, []byte, error) {
		return blobs.Pack(ctx, id, form, tar)
	}
	return solver.Demand{Blob: form.String()}
}
