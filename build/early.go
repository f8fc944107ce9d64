package build

import (
	"context"
	"sync"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// early makes the blobs of the image's layers while later steps still run. It is an events.Sink.
type early struct {
	ctx     context.Context
	blobs   *exporter.Blobs
	forms   []blob.Encoding
	wanted  map[llb.Digest]bool
	room    chan struct{}
	working sync.WaitGroup

	mu  sync.Mutex
	ran map[llb.Digest]bool // the vertices that are not cached
}

// newEarly returns an early for the layers that lie on the way from the roots down, in the forms that outputs need.
func newEarly(ctx context.Context, blobs *exporter.Blobs, roots []llb.Output, outputs []output) *early {
	e := &early{ctx: ctx, blobs: blobs, wanted: map[llb.Digest]bool{}, ran: map[llb.Digest]bool{}, room: make(chan struct{}, 2)}
	for _, out := range outputs {
		if out.image() {
			e.forms = append(e.forms, out.form.Layers)
		}
	}
	for _, o := range roots {
		for base, ok := o.Base(); ok; base, ok = o.Base() {
			v := o.Vertex
			e.wanted[v.Digest()] = true
			if _, ok := v.Op().(llb.Merge); ok {
				for _, linked := range v.Inputs()[1:] {
					e.wanted[linked.Vertex.Digest()] = true
				}
			}
			o = base
		}
	}
	return e
}

// Event implements events.Sink: it begins with the blob of a layer that a vertex has just made.
func (e *early) Event(event events.Event) {
	if !e.wanted[event.Vertex] {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch b := event.Body.(type) {
	case events.Missed:
		e.ran[event.Vertex] = true
	case events.Finished:
		if e.ran[event.Vertex] && b.Error == "" && !b.Canceled {
			for _, out := range b.Outputs {
				e.prepare(out.Layer)
			}
		}
	}
}

// prepare makes the blob of a layer. What goes wrong goes wrong again, and is reported, when the image is assembled.
func (e *early) prepare(id string) {
	for _, form := range e.forms {
		e.working.Go(func() {
			select {
			case e.room <- struct{}{}:
			case <-e.ctx.Done():
				return
			}
			defer func() { <-e.room }()
			_ = e.blobs.Prepare(e.ctx, exporter.Layer{ID: layer.ID(id)}, form)
		})
	}
}

// wait returns when nothing is being made any more.
func (e *early) wait() { e.working.Wait() }

// onlyForm returns the form in which all outputs need layers; false if one needs files, or they need different forms, or other times
// of files than steps gave them.
func onlyForm(outputs []output) (blob.Encoding, bool) {
	form := outputs[0].form.Layers
	for _, out := range outputs {
		if !out.image() || out.form.Layers != form {
			return form, false
		}
	}
	return form, !form.Rewrite
}
