// Package early makes the blobs of the layers of an image while later steps still run. It does not know what a blob is made for.
package early

import (
	"context"
	"sync"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// Blobs makes the blobs of an image's layers. It is an events.Sink.
type Blobs struct {
	ctx     context.Context
	blobs   *exporter.Blobs
	forms   []blob.Encoding
	wanted  map[llb.Digest]bool
	room    chan struct{}
	working sync.WaitGroup

	mu  sync.Mutex
	ran map[llb.Digest]bool // the vertices that are not cached
}

// New returns a Blobs for the layers that lie on the way from the roots down, in the forms that outputs need. It makes none after ctx ends.
func New(ctx context.Context, blobs *exporter.Blobs, roots []llb.Output, forms []blob.Encoding) *Blobs {
	return &Blobs{ctx: ctx, blobs: blobs, forms: forms, wanted: InImage(roots), ran: map[llb.Digest]bool{}, room: make(chan struct{}, 2)}
}

// InImage returns the vertices whose layers are in the images that roots are.
func InImage(roots []llb.Output) map[llb.Digest]bool {
	all := map[llb.Digest]bool{}
	for _, o := range roots {
		for base, ok := o.Base(); ok; base, ok = o.Base() {
			v := o.Vertex
			all[v.Digest()] = true
			if _, ok := v.Op().(llb.Merge); ok {
				for _, linked := range v.Inputs()[1:] {
					all[linked.Vertex.Digest()] = true
				}
			}
			o = base
		}
	}
	return all
}

// Event implements events.Sink: it begins with the blob of a layer that a vertex has just made.
func (e *Blobs) Event(event events.Event) {
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
func (e *Blobs) prepare(id string) {
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

// Wait returns when nothing is being made any more.
func (e *Blobs) Wait() { e.working.Wait() }
