package builder

import (
	"context"
	"sync"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// early makes the blobs of the image's layers while later steps still run.
type early struct {
	ctx     context.Context
	blobs   *exporter.Blobs
	forms   []exporter.LayerForm
	wanted  map[*llb.Vertex]bool
	room    chan struct{}
	working sync.WaitGroup
}

// newEarly returns an early for the layers that lie on the way from the roots down, in the forms that outputs need.
func newEarly(ctx context.Context, blobs *exporter.Blobs, roots []*llb.Vertex, outputs []output) *early {
	e := &early{ctx: ctx, blobs: blobs, wanted: map[*llb.Vertex]bool{}, room: make(chan struct{}, 2)}
	for _, out := range outputs {
		if out.image() {
			e.forms = append(e.forms, out.form.Layers)
		}
	}
	for _, v := range roots {
		for len(v.Inputs()) > 0 {
			e.wanted[v] = true
			if _, ok := v.Op().(llb.Merge); ok {
				for _, linked := range v.Inputs()[1:] {
					e.wanted[linked] = true
				}
			}
			v = v.Inputs()[0]
		}
	}
	return e
}

// made begins, unless e is nil, with the blob of a layer that a vertex has just made. What goes wrong goes wrong again, and is reported, when
// the image is assembled.
func (e *early) made(v *llb.Vertex, l solver.Layer) {
	if e == nil || !e.wanted[v] {
		return
	}
	for _, form := range e.forms {
		e.working.Go(func() {
			select {
			case e.room <- struct{}{}:
			case <-e.ctx.Done():
				return
			}
			defer func() { <-e.room }()
			_ = e.blobs.Prepare(e.ctx, exporter.Layer{ID: l.ID}, form)
		})
	}
}

// wait returns when nothing is being made any more.
func (e *early) wait() { e.working.Wait() }

// onlyForm returns the form in which all outputs need layers; false if one needs files, or they need different forms, or other times
// of files than steps gave them.
func onlyForm(outputs []output) (exporter.LayerForm, bool) {
	form := outputs[0].form.Layers
	for _, out := range outputs {
		if !out.image() || out.form.Layers != form {
			return form, false
		}
	}
	return form, !form.Rewrite
}
