// Package solver decides which steps of a graph run, and when: it probes the cache from the bottom up, runs what is
// missed, several at a time, and stops everything at the first failure. It does not know what any op does.
package solver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
)

// Record is what is remembered of a step that ran.
type Record struct {
	Layer Layer
	// Inputs are the key's inputs in words.
	Inputs []Input
	// Name is the step's progress line when it ran.
	Name string
	// Started and Took say when the step ran, and for how long.
	Started time.Time
	Took    time.Duration
	// LogSize is the length in bytes of the step's log, which the cache keeps beside the record.
	LogSize int64
}

// Miss is why the cache has no record: a key that was never seen, or a record that is damaged or not to be trusted.
type Miss struct{ Reason string }

func (m *Miss) Error() string { return m.Reason }

// Cache remembers what steps made, under their keys. Implementations are safe for concurrent use, also by other processes.
type Cache interface {
	// Get returns the record of a key. There is always a reason for having none, of type *Miss; any other error is a
	// failure of the cache itself.
	Get(key Key) (*Record, error)
	// Put stores a record, with the log that was written by NewLog's writer. The record replaces an older one.
	Put(key Key, r *Record, log Log) error
	// Lock makes the holder the only one, in all processes, who works on the key; it waits until ctx ends.
	Lock(ctx context.Context, key Key) (unlock func(), err error)
	// PutFailed keeps the log of a step that failed, until the step runs again, and returns the file that it is in; "" for none.
	PutFailed(key Key, log Log) (file string, err error)
	// NewLog returns a place for the output of a step that is about to run.
	NewLog() (Log, error)
}

// History is what a Cache may also know: what a step made in the last build, whatever has changed since then.
type History interface {
	// Last returns the record that SetLast named last for the vertex's digest, or else for its place, or else, with same false, for the
	// same place in another project; nil for none. One of another project may serve as something to start from, and says nothing of why
	// the step runs.
	Last(v *llb.Vertex) (r *Record, same bool)
	// SetLast remembers that the record under key is the vertex's. Where that is known already nothing is written.
	SetLast(v *llb.Vertex, key Key) error
}

// Log takes the output of one step. Close without a Put or PutFailed throws it away.
type Log interface {
	io.WriteCloser
}

// Step is what a Runner has found out about a vertex whose inputs are done.
type Step struct {
	// Done says that there is nothing to run: Root is the output already. The other fields are zero then.
	Done bool
	Root *Chain
	// Inputs decide the result of Run.
	Inputs []Input
	// Run does the work and returns the layer that comes on top of the vertex's input 0.
	Run func(ctx context.Context, job Job) (Layer, error)
	// Close, where not nil, frees what the step holds; it is called once, whether or not Run was.
	Close func()
}

// Job is what a running step is given.
type Job struct {
	// Stdout and Stderr take the output of processes.
	Stdout io.Writer
	Stderr io.Writer
	// Last is the layer that the step made when it last ran, for what can be taken from it; the zero Layer for none.
	Last Layer
}

// Runner knows what ops do. Implementations are safe for concurrent use.
type Runner interface {
	// Plan looks at a vertex whose inputs' outputs are in; it reads, but does not change anything that stays.
	Plan(ctx context.Context, v *llb.Vertex, in []*Chain) (Step, error)
	// Missing returns why a layer of an earlier build cannot be used, nil if it can, and fs.ErrNotExist if it was removed.
	Missing(l Layer) error
}

// Explainer says how steps differ from what they were. Implementations are safe for concurrent use.
type Explainer interface {
	// Inputs compares the inputs of a step with those that it had in the last build. Values that are secrets are hidden.
	Inputs(now, last []Input) (changes []events.Change, more int)
	// Files compares what a step made with what it made before.
	Files(now, last Layer) events.Files
}

// VertexError is the failure of one vertex.
type VertexError struct {
	Vertex *llb.Vertex
	Err    error
	// LogFile holds all that the step printed; "" where that is not kept.
	LogFile string
}

func (e *VertexError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *VertexError) Unwrap() error { return e.Err }

// Options say how a graph is solved.
type Options struct {
	Cache  Cache
	Runner Runner
	// Events is told what happens to each vertex, and may be nil. The context that the Runner is given has the vertex: see events.From.
	Events *events.Stream
	// Explain says why steps run, and may be nil; Files also asks it about the files of a step that made others than in the last build.
	Explain Explainer
	Files   bool
	// Parallelism is how many vertices are worked on at once; at least 1.
	Parallelism int
	// Verify runs steps again that are cached, to see whether they make the same. The earlier result is used all the same.
	Verify bool
}

// state is where a vertex is on its way. Changes go through solve.set alone, which keeps the counters right.
type state int

const (
	// waiting: some input is not done.
	waiting state = iota
	// ready: every input is done; in the queue.
	ready
	// working: a goroutine plans, probes or runs it.
	working
	// done: its output is known.
	done
	// failed: it returned an error, or was working when another failed.
	failed
)

type node struct {
	vertex  *llb.Vertex
	state   state
	pending int // inputs that are not done
	users   []*node
	inputs  []*node
	output  *Chain
	// rank is the length of the longest way from here to a root: steps on the longest way start first.
	rank int
}

type completion struct {
	node   *node
	output *Chain
	err    error
}

// Solve brings about the outputs of the roots and returns them in their order. The error of the vertex that failed first
// is returned as *VertexError, after everything that was running has ended; a ctx that ends is returned as its cause.
//
//   - A vertex is ready once all its inputs are done, and is worked on as soon as there is room.
//   - Work happens in goroutines; states change only here, one completion at a time.
//   - The first failure cancels the work of all others, starts nothing more, and waits for what runs.
//   - When nothing is ready or working, every root is done.
func Solve(ctx context.Context, roots []llb.Output, o Options) ([]*Chain, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &solve{opts: o, nodes: map[llb.Digest]*node{}, completions: make(chan completion)}
	var wanted []*node
	for _, v := range roots {
		wanted = append(wanted, s.add(v.Vertex))
	}
	for _, n := range wanted {
		s.rank(n, 0)
	}
	for _, n := range s.order {
		if n.pending == 0 {
			s.set(n, ready)
		}
	}

	var first error
	for s.count[ready] > 0 && first == nil || s.count[working] > 0 {
		for first == nil && s.count[working] < max(1, o.Parallelism) && s.count[ready] > 0 {
			n := s.pop()
			s.set(n, working)
			go func() {
				out, err := s.work(ctx, n)
				s.completions <- completion{n, out, err}
			}()
		}
		c := <-s.completions
		if c.err != nil {
			s.set(c.node, failed)
			if first == nil {
				first = c.err
				if !errors.As(first, new(*VertexError)) {
					first = &VertexError{Vertex: c.node.vertex, Err: c.err}
				}
				if cause := context.Cause(ctx); cause != nil {
					first = cause
				}
				cancel(errSibling)
			}
			continue
		}
		c.node.output = c.output
		s.set(c.node, done)
		for _, u := range c.node.users {
			if u.pending--; u.pending == 0 {
				s.set(u, ready)
			}
		}
	}
	if first != nil {
		return nil, first
	}
	outputs := make([]*Chain, len(wanted))
	for i, n := range wanted {
		if n.state != done {
			panic(fmt.Sprintf("BUG: nothing left to do, and %s is not done", n.vertex.Meta().Name()))
		}
		outputs[i] = n.output
	}
	return outputs, nil
}

// errSibling is why the work of a vertex ends that has not failed itself.
var errSibling error = siblingError{}

type siblingError struct{}

func (siblingError) Error() string { return "another step failed" }

// Is makes it a kind of cancellation to whoever asks.
func (siblingError) Is(target error) bool { return target == context.Canceled }

// PanicError is a defect of kiln that showed while it worked on a vertex.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("internal error: %v", e.Value) }

type solve struct {
	opts        Options
	nodes       map[llb.Digest]*node
	order       []*node // inputs before users
	queue       []*node // ready, in no order
	count       [failed + 1]int
	completions chan completion
}

// add puts v and everything below it into the table. It does not recurse: graphs can be thousands of steps deep.
func (s *solve) add(root *llb.Vertex) *node {
	type visit struct {
		v    *llb.Vertex
		next int
	}
	stack := []visit{{v: root}}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if s.nodes[top.v.Digest()] == nil && top.next < len(top.v.Inputs()) {
			in := top.v.Inputs()[top.next]
			top.next++
			if s.nodes[in.Vertex.Digest()] == nil {
				stack = append(stack, visit{v: in.Vertex})
			}
			continue
		}
		v := top.v
		stack = stack[:len(stack)-1]
		if s.nodes[v.Digest()] != nil {
			continue
		}
		n := &node{vertex: v}
		for _, in := range v.Inputs() {
			i := s.nodes[in.Vertex.Digest()]
			n.inputs = append(n.inputs, i)
			i.users = append(i.users, n)
		}
		n.pending = len(n.inputs)
		s.nodes[v.Digest()] = n
		s.order = append(s.order, n)
		s.count[waiting]++
	}
	return s.nodes[root.Digest()]
}

// rank gives every node its distance from a root, in one pass from the roots down.
func (s *solve) rank(root *node, least int) {
	root.rank = max(root.rank, least)
	for i := len(s.order) - 1; i >= 0; i-- {
		n := s.order[i]
		for _, in := range n.inputs {
			in.rank = max(in.rank, n.rank+1)
		}
	}
}

// set is the only place where a state changes.
func (s *solve) set(n *node, to state) {
	s.count[n.state]--
	s.count[to]++
	n.state = to
	if to == ready {
		s.queue = append(s.queue, n)
	}
}

// pop takes the ready node with the longest way still to go.
func (s *solve) pop() *node {
	best := 0
	for i, n := range s.queue {
		if n.rank > s.queue[best].rank {
			best = i
		}
	}
	n := s.queue[best]
	s.queue[best] = s.queue[len(s.queue)-1]
	s.queue = s.queue[:len(s.queue)-1]
	return n
}

// work finds a vertex's output in the cache, or makes it.
func (s *solve) work(ctx context.Context, n *node) (out *Chain, err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	w := &work{solve: s, vertex: n.vertex, task: s.opts.Events.Vertex(n.vertex)}
	ctx = events.With(ctx, w.task)
	defer func() {
		if p := recover(); p != nil {
			err = &PanicError{Value: p, Stack: debug.Stack()}
		}
		shown := err
		if err != nil && ctx.Err() != nil {
			shown = context.Cause(ctx) // whatever a step says that is stopped, it has not failed
		}
		w.task.Finish(w.finished, shown)
	}()

	in := make([]*Chain, len(n.inputs))
	for i, input := range n.inputs {
		in[i] = input.output
	}
	w.step, err = s.opts.Runner.Plan(ctx, n.vertex, in)
	if err != nil {
		return nil, err
	}
	if w.step.Close != nil {
		defer w.step.Close()
	}
	if w.step.Done {
		return w.step.Root, nil
	}
	w.key = KeyOf(w.step.Inputs)
	w.finished.Key = w.key.String()
	r, err := w.probeOrRun(ctx)
	if err != nil {
		return nil, err
	}
	output := events.Output{Layer: r.Layer.ID}
	if r.Layer.Content != (Content{}) {
		output.Content = r.Layer.Content.String()
	}
	w.finished.Outputs = []events.Output{output}
	return in[0].Push(r.Layer), nil
}

// work is a vertex that is being worked on.
type work struct {
	*solve
	vertex   *llb.Vertex
	task     *events.Task
	step     Step
	key      Key
	finished events.Finished // as far as it is known
}

// probeOrRun returns the record of a step: an earlier one, or that of running it now. Whoever holds the key's lock is the
// only one to run it, so equal work in other goroutines and processes is waited for and then found in the cache.
func (w *work) probeOrRun(ctx context.Context) (*Record, error) {
	r, miss, err := w.probe()
	if err != nil {
		return nil, err
	}
	if miss == nil {
		return r, w.hit(ctx, r)
	}
	unlock, err := w.opts.Cache.Lock(ctx, w.key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r, miss, err = w.probe(); err != nil {
		return nil, err
	}
	if miss == nil {
		return r, w.hit(ctx, r)
	}
	return w.run(ctx, miss)
}

// probe returns the record of the step, or why there is none.
func (w *work) probe() (*Record, *Miss, error) {
	if w.vertex.Meta().NoCache {
		return nil, &Miss{Reason: "caching is off for this step"}, nil
	}
	r, err := w.opts.Cache.Get(w.key)
	if miss, ok := errors.AsType[*Miss](err); ok {
		return nil, miss, nil
	}
	if err != nil {
		return nil, nil, err
	}
	err = w.opts.Runner.Missing(r.Layer)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &Miss{Reason: fmt.Sprintf("layer %s is gone", r.Layer.ID)}, nil
	case err != nil:
		return nil, &Miss{Reason: err.Error()}, nil
	}
	return r, nil, nil
}

// hit uses the record r, and runs the step again if that is to be verified.
func (w *work) hit(ctx context.Context, r *Record) error {
	if h, ok := w.opts.Cache.(History); ok {
		_ = h.SetLast(w.vertex, w.key) // without it the next explanation says less, and no result changes
	}
	w.task.Emit(events.Cached{Key: w.key.String()})
	if !w.opts.Verify {
		return nil
	}
	log, err := w.opts.Cache.NewLog()
	if err != nil {
		return err
	}
	defer log.Close()
	tee := &tee{task: w.task, log: log}
	made, err := w.step.Run(ctx, Job{Stdout: tee.stream(1), Stderr: tee.stream(2)})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	again := events.Again{}
	if err != nil {
		_, again.Error = events.Outcome(err)
	} else if made.Content != r.Layer.Content {
		again.Differs = true
		if w.opts.Explain != nil {
			again.Files = w.opts.Explain.Files(made, r.Layer)
		}
	}
	w.task.Emit(again)
	return nil
}

// run runs the step and puts its record into the cache.
func (w *work) run(ctx context.Context, miss *Miss) (*Record, error) {
	job := Job{}
	var last *Record // in the last build
	if h, ok := w.opts.Cache.(History); ok {
		r, same := h.Last(w.vertex)
		if r != nil {
			job.Last = r.Layer
		}
		if same {
			last = r
		}
	}
	missed := w.missed(miss, last)
	w.task.Emit(missed)
	log, err := w.opts.Cache.NewLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	tee := &tee{task: w.task, log: log}
	started := time.Now()
	job.Stdout, job.Stderr = tee.stream(1), tee.stream(2)
	layer, err := w.step.Run(ctx, job)
	if err != nil && ctx.Err() == nil && tee.size() > 0 {
		// A log that cannot be kept is no reason to say less of the failure.
		file, _ := w.opts.Cache.PutFailed(w.key, log)
		if file != "" {
			w.finished.LogBytes = tee.size()
		}
		return nil, &VertexError{Vertex: w.vertex, Err: err, LogFile: file}
	}
	if err != nil {
		return nil, err
	}
	w.finished.LogBytes = tee.size()
	r := &Record{
		Layer: layer, Inputs: w.step.Inputs, Name: w.vertex.Meta().Name(), Started: started, Took: time.Since(started), LogSize: tee.size(),
	}
	if err := w.opts.Cache.Put(w.key, r, log); err != nil {
		return nil, err
	}
	if w.opts.Files && slices.ContainsFunc(missed.Changes, func(c events.Change) bool { return c.Input == events.InputFiles }) {
		w.task.Emit(w.opts.Explain.Files(layer, last.Layer))
	}
	if h, ok := w.opts.Cache.(History); ok {
		return r, h.SetLast(w.vertex, w.key)
	}
	return r, nil
}

// missed returns the event that says why the step runs.
func (w *work) missed(miss *Miss, last *Record) events.Missed {
	m := events.Missed{Reason: miss.Reason}
	if last == nil {
		return m
	}
	m.Last = last.Layer.ID
	if w.opts.Explain != nil {
		m.Changes, m.More = w.opts.Explain.Inputs(w.step.Inputs, last.Inputs)
	}
	return m
}
