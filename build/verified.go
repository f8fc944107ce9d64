package build

import (
	"sync"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
)

// verified collects the steps that ran again to verify the cache. It is an events.Sink.
type verified struct {
	mu    sync.Mutex
	names map[llb.Digest]string
	steps []Verified
}

// Event implements events.Sink.
func (v *verified) Event(e events.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch b := e.Body.(type) {
	case events.Started:
		v.names[e.Vertex] = b.Name()
	case events.Again:
		v.steps = append(v.steps, Verified{Step: v.names[e.Vertex], Again: b})
	case events.Finished:
		delete(v.names, e.Vertex)
	}
}
