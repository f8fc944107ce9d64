package builder

import (
	"sync"

	"github.com/kilnbuild/kiln/internal/progress"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// observer shows the solver's vertices as tasks.
type observer struct {
	printer progress.Printer
	early   *early
	explain func(solver.Outcome) []string // nil: nobody asked
	verify  func(solver.Outcome) []string // of a step that ran again
	mu      sync.Mutex
	tasks   map[*llb.Vertex]*progress.Task
	checked []Verified
}

func newObserver(p progress.Printer, e *early) *observer {
	return &observer{printer: p, early: e, tasks: map[*llb.Vertex]*progress.Task{}}
}

// Started implements solver.Observer. Vertices that stand for something that is there already are not shown.
func (o *observer) Started(v *llb.Vertex) {
	switch v.Op().(type) {
	case llb.Scratch, llb.Local, llb.Merge:
		return
	}
	t := o.printer.Task(v.Meta().Name())
	o.mu.Lock()
	o.tasks[v] = t
	o.mu.Unlock()
	t.Start()
}

func (o *observer) task(v *llb.Vertex) *progress.Task {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.tasks[v]
}

// Log implements solver.Observer.
func (o *observer) Log(v *llb.Vertex, stream int, p []byte) {
	if t := o.task(v); t != nil {
		t.Log(stream, p)
	}
}

// Finished implements solver.Observer.
func (o *observer) Finished(v *llb.Vertex, out solver.Outcome) {
	if out.Err == nil && out.Record != nil && !out.Cached {
		o.early.made(v, out.Record.Layer)
	}
	t := o.task(v)
	if out.Again != nil {
		result := Verified{Step: v.Meta().Name(), Differences: o.verify(out)}
		o.mu.Lock()
		o.checked = append(o.checked, result)
		o.mu.Unlock()
		for _, line := range result.Differences {
			if t != nil {
				t.Note(line)
			}
		}
	}
	switch {
	case t == nil:
	case out.Err == nil && out.Cached:
		t.Cached()
	default:
		if o.explain != nil && out.Miss != nil && out.Record != nil {
			for _, line := range o.explain(out) {
				t.Note(line)
			}
		}
		t.Done(out.Err)
	}
}
