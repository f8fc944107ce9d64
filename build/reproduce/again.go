package reproduce

import (
	"fmt"
	"sync"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
)

// Step is a step that ran again.
type Step struct {
	// Step is its progress line.
	Step string
	// Again is what came of it.
	Again events.Again
}

// Same returns an error if a step made something else when it ran again.
func Same(steps []Step) error {
	differ := 0
	for _, s := range steps {
		if s.Again.Differs || s.Again.Error != "" {
			differ++
		}
	}
	if differ == 0 {
		return nil
	}
	return fmt.Errorf("the image is not reproducible: %d of %d steps made something else when they ran again; nothing is exported",
		differ, len(steps))
}

// Steps collects the steps that ran again. It is an events.Sink.
type Steps struct {
	mu    sync.Mutex
	names map[llb.Digest]string
	steps []Step
}

// Event implements events.Sink.
func (s *Steps) Event(e events.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch b := e.Body.(type) {
	case events.Started:
		if s.names == nil {
			s.names = map[llb.Digest]string{}
		}
		s.names[e.Vertex] = b.Name()
	case events.Again:
		s.steps = append(s.steps, Step{Step: s.names[e.Vertex], Again: b})
	case events.Finished:
		delete(s.names, e.Vertex)
	}
}

// All returns them, in the order in which they ran again.
func (s *Steps) All() []Step {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.steps
}
