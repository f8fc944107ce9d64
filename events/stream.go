package events

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
)

// Sink is given the events of a stream, one after the other. It must not wait for anything but its own output, nor emit events.
type Sink interface {
	Event(e Event)
}

// Stream passes events on to sinks, and keeps nothing of them. Its methods are safe for concurrent use. A nil *Stream drops everything.
type Stream struct {
	now func() time.Time

	mu     sync.Mutex
	last   time.Time
	sinks  []Sink
	tasks  map[string]int // how many that are no vertices have had a name
	closed bool
}

// New returns a stream with these sinks.
func New(sinks ...Sink) *Stream {
	return &Stream{now: time.Now, sinks: sinks, tasks: map[string]int{}}
}

// Attach adds a sink, which is given the events from now on.
func (s *Stream) Attach(sink Sink) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sinks = append(s.sinks, sink)
}

// Detach takes a sink away: when it returns, the sink is not called any more.
func (s *Stream) Detach(sink Sink) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sinks = slices.DeleteFunc(s.sinks, func(other Sink) bool { return other == sink })
}

// Close ends the stream: later events are dropped. A second Close does nothing.
func (s *Stream) Close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// Emit passes an event of the build on.
func (s *Stream) Emit(body Body) { s.emit(llb.Digest{}, body) }

// Relay passes on an event of another stream. It gets a time of this one.
func (s *Stream) Relay(e Event) { s.emit(e.Vertex, e.Body) }

func (s *Stream) emit(vertex llb.Digest, body Body) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	// The clock may be set back.
	if now := s.now(); now.After(s.last) {
		s.last = now
	}
	e := Event{Time: s.last, Vertex: vertex, Body: body}
	for _, sink := range s.sinks {
		sink.Event(e)
	}
}

// Warn emits a Warning that no check found.
func (s *Stream) Warn(text string) { s.Emit(Warning{Text: Text(text)}) }

// Vertex starts a vertex of the graph.
func (s *Stream) Vertex(v *llb.Vertex) *Task {
	m := v.Meta()
	inputs := make([]llb.Digest, len(v.Inputs()))
	for i, in := range v.Inputs() {
		inputs[i] = in.Vertex.Digest()
	}
	return s.start(v.Digest(), Started{Op: v.Op().Kind(), Place: m.Place, Text: Text(m.Text), Inputs: inputs, Location: m.Location})
}

// Task starts something that is no vertex of the graph. Its ID is the digest of its name, and of how often there was one of this name in
// the stream before.
func (s *Stream) Task(place llb.Place, text string) *Task {
	if s == nil {
		return nil
	}
	started := Started{Place: place, Text: Text(text)}
	name := started.Name()
	s.mu.Lock()
	s.tasks[name]++
	n := s.tasks[name]
	s.mu.Unlock()
	return s.start(sha256.Sum256(fmt.Appendf(nil, "kiln task %d %s", n, name)), started)
}

func (s *Stream) start(id llb.Digest, started Started) *Task {
	if s == nil {
		return nil
	}
	s.emit(id, started)
	return &Task{stream: s, id: id, started: started}
}

// Task emits the events of one vertex. Its methods are safe for concurrent use; those of a nil *Task do nothing.
type Task struct {
	stream  *Stream
	id      llb.Digest
	started Started

	mu        sync.Mutex
	resources Resources
	// finished says that Finish was called, and closed that Finished was emitted, which a Hold delays.
	finished, closed bool
	// holds is how many Holds go on; result is what Finish was given meanwhile.
	holds  int
	result Finished
	waits  int // how many Waits go on
	// deferred says that Defer holds the vertex and has it wait.
	deferred bool
}

// Emit emits an event of the vertex. After Finish it does nothing, unless the vertex is held.
func (t *Task) Emit(body Body) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.emit(body)
}

// emit is Emit with t.mu held.
func (t *Task) emit(body Body) {
	if !t.closed {
		t.stream.emit(t.id, body)
	}
}

// Hold keeps the vertex from ending until release is called: something is done for it apart from its own work. A vertex that has ended
// starts again. The first error that Finish or a release is given is that of the vertex. A second call of release does nothing.
func (t *Task) Hold() (release func(err error)) {
	if t == nil {
		return func(error) {}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		t.closed = false
		t.result.Error, t.result.Canceled, t.result.Err = "", false, nil
		t.emit(t.started)
	}
	t.holds++
	t.needed()
	var once sync.Once
	return func(err error) {
		once.Do(func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.holds--
			t.end(err)
		})
	}
}

// Defer holds the vertex, which only waits, until a Hold says that it is needed and takes its place. If there is none before drop is
// called, the vertex ends as one of which nothing was needed: it is Cached.
func (t *Task) Defer() (drop func()) {
	if t == nil {
		return func() {}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.holds++
	t.deferred = true
	t.wait(Waiting{})
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.deferred {
			t.emit(Cached{})
			t.needed()
			t.end(nil)
		}
	}
}

// needed ends what Defer began, without ending the vertex.
func (t *Task) needed() {
	if t.deferred {
		t.deferred = false
		t.resume()
		t.holds--
	}
}

// Wait says that the vertex only waits for another one, until resume is called. A second call of resume does nothing.
func (t *Task) Wait(other *Task) (resume func()) {
	if t == nil || other == nil || t == other {
		return func() {}
	}
	w := Waiting{For: other.id}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wait(w)
	var once sync.Once
	return func() {
		once.Do(func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.resume()
		})
	}
}

func (t *Task) wait(w Waiting) {
	if t.waits++; t.waits == 1 {
		t.emit(w)
	}
}

func (t *Task) resume() {
	if t.waits--; t.waits == 0 {
		t.emit(Resumed{})
	}
}

// Log emits output. p is only used during the call.
func (t *Task) Log(stream int, p []byte) { t.Emit(Log{Stream: stream, Data: p}) }

// Note emits a line.
func (t *Task) Note(text string) { t.Emit(Note{Text: Text(text)}) }

// Used adds to what the vertex's processes took.
func (t *Task) Used(r Resources) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resources.CPU += r.CPU
	t.resources.Memory = max(t.resources.Memory, r.Memory)
}

// Done ends a vertex that makes no layer, with err if it failed.
func (t *Task) Done(err error) { t.Finish(Finished{}, err) }

// Finish ends the vertex, or has it end with the last Hold. An error that is context.Canceled says that it was stopped, any other that it
// failed. A second call does nothing.
func (t *Task) Finish(f Finished, err error) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.finished {
		return
	}
	t.finished = true
	f.Error, f.Canceled, f.Err = t.result.Error, t.result.Canceled, t.result.Err
	t.result = f
	t.end(err)
}

// end notes how a part of the work ended, and emits the vertex's Finished once nothing is done for it any more.
func (t *Task) end(err error) {
	if t.result.Error == "" && !t.result.Canceled {
		t.result.Canceled, t.result.Error = Outcome(err)
		t.result.Err = err
	}
	if t.finished && t.holds == 0 {
		t.result.Resources = t.resources
		t.emit(t.result)
		t.closed = true
	}
}

// Text returns a text as events have it: at most termtext.MaxLine bytes, without the user and password of URLs.
func Text(s string) string { return termtext.Redact(termtext.Clip(s, termtext.MaxLine)) }

// Outcome returns what an error is in an event: a cancellation, or a Text. An error with a method Retried that reports true ends the work
// for which it is returned, but not the build, which does the work again in another way; so that is no failure.
func Outcome(err error) (canceled bool, text string) {
	var again interface{ Retried() bool }
	switch {
	case err == nil:
		return false, ""
	case errors.Is(err, context.Canceled):
		return true, ""
	case errors.As(err, &again) && again.Retried():
		return true, ""
	}
	return false, Text(err.Error())
}

// Transferring returns a function that emits how much of a phase of a transfer is done, not more often than people can see: total is in
// bytes, 0 where it is not known. The transfer is done when current is total, or when the function is called with done.
func (t *Task) Transferring(name string, phase Phase, total int64) func(current int64, done bool) {
	if t == nil {
		return func(int64, bool) {}
	}
	var mu sync.Mutex
	var last time.Time
	over := false
	return func(current int64, done bool) {
		mu.Lock()
		defer mu.Unlock()
		done = done || total > 0 && current >= total
		if over || !done && t.stream.now().Sub(last) < transferInterval {
			return
		}
		last, over = t.stream.now(), done
		t.Emit(Transfer{Name: name, Phase: phase, Current: current, Total: total, Done: done})
	}
}

// Counting returns a function that counts bytes of a phase of a transfer, in any number of goroutines, and one that ends it. Work of less
// than worthReporting bytes emits nothing: it takes no time that people would notice.
func (t *Task) Counting(name string, phase Phase, total int64) (count func(n int64), end func()) {
	if t == nil {
		return func(int64) {}, func() {}
	}
	report := t.Transferring(name, phase, total)
	var all atomic.Int64
	count = func(n int64) {
		if now := all.Add(n); now >= worthReporting {
			report(now, false)
		}
	}
	end = func() {
		if now := all.Load(); now >= worthReporting {
			report(now, true)
		}
	}
	return count, end
}

// worthReporting is how many bytes Counting counts before it says so.
const worthReporting = 8 << 20

// transferInterval is the least time between two events of one transfer.
const transferInterval = 100 * time.Millisecond

type contextKey struct{}

// With returns a context in which work is done for a vertex.
func With(ctx context.Context, t *Task) context.Context {
	return context.WithValue(ctx, contextKey{}, t)
}

// From returns the vertex that work is done for; nil, whose methods do nothing, for none.
func From(ctx context.Context) *Task {
	t, _ := ctx.Value(contextKey{}).(*Task)
	return t
}
