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
	// Log are the last lines the vertex logged, at most 20 and some kilobytes, without control characters. Where much standard
	// output came after the last lines of standard error, those come first, and then "...".
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
	name   string
	all    tail // of both streams
	errors tail // of standard error alone
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
			t.all.write(b.Data)
			if b.Stream == 2 {
				t.errors.write(b.Data)
			}
		}
	case events.Finished:
		if t := f.running[e.Vertex]; t != nil && b.Error != "" {
			f.failed[e.Vertex] = Failure{Name: termtext.Line(t.name), Log: t.quote(), More: t.all.cut || len(t.all.lines(quoteLines+1)) > quoteLines}
		}
		delete(f.running, e.Vertex)
	}
}

// quote returns the lines of the log that say most about a failure.
func (t *ending) quote() []string {
	lines, errs := t.all.lines(quoteLines), t.errors.lines(quoteLines/2)
	// Both are in the order of writing, so errs from the end on are found in lines from the end on.
	missing := len(errs)
	for i := len(lines); missing > 0 && i > 0; i-- {
		if lines[i-1] == errs[missing-1] {
			missing--
		}
	}
	if missing == 0 || len(lines) < quoteLines && !t.all.cut {
		return lines
	}
	rest := quoteLines - missing - 1
	return append(append(errs[:missing:missing], "..."), lines[max(0, len(lines)-rest):]...)
}
