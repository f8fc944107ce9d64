package progress

import (
	"sync"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
)

// quoteLines is how much of a log a Failure keeps: enough for most compilers' errors, not a screenful.
const quoteLines = 20

// Failure is a vertex that failed.
type Failure struct {
	// Name is its progress line, fit for a terminal.
	Name string
	// Log are the last lines the vertex logged, at most 20 and some kilobytes, without control characters.
	Log []string
	// More reports that the vertex logged more than Log has.
	More bool
}

// Failures keeps what is quoted of vertices that fail. It is an events.Sink; the zero value is ready for use.
type Failures struct {
	mu      sync.Mutex
	running map[llb.Digest]*ending
	failed  map[llb.Digest]Failure
}

// ending is the end of a vertex's log.
type ending struct {
	name string
	log  tail
}

// Of returns the failure of a vertex; false if it has not failed.
func (f *Failures) Of(vertex llb.Digest) (Failure, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	failure, ok := f.failed[vertex]
	return failure, ok
}

// Event implements events.Sink.
func (f *Failures) Event(e events.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch b := e.Body.(type) {
	case events.Started:
		if f.running == nil {
			f.running, f.failed = map[llb.Digest]*ending{}, map[llb.Digest]Failure{}
		}
		f.running[e.Vertex] = &ending{name: b.Name()}
	case events.Log:
		if t := f.running[e.Vertex]; t != nil {
			t.log.write(b.Data)
		}
	case events.Finished:
		if t := f.running[e.Vertex]; t != nil && b.Error != "" {
			lines := t.log.lines(quoteLines + 1)
			f.failed[e.Vertex] = Failure{
				Name: termtext.Line(t.name), Log: lines[max(0, len(lines)-quoteLines):], More: t.log.cut || len(lines) > quoteLines,
			}
		}
		delete(f.running, e.Vertex)
	}
}
