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
	"time"

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

// Observer is told what happens to each vertex. Its methods are called from several goroutines, for one vertex in order:
// Started, then Log any number of times, then Finished; vertices of a build that failed may lack the last.
type Observer interface {
	Started(v *llb.Vertex)
	// Log takes output of a step; stream is 1 or 2. p is only valid during the call.
	Log(v *llb.Vertex, stream int, p []byte)
	Finished(v *llb.Vertex, o Outcome)
}

// Outcome is how a vertex ended.
type Outcome struct {
	// Cached says that an earlier result was used; Record is that result, or the new one of a step that ran, or nil where
	// the vertex is not of a kind that is recorded.
	Cached bool
	Record *Record
	// Miss is why the step ran; nil for one that did not. Last is what the step made before, where that is known.
	Miss *Miss
	Last *Record
	// Again is what a cached step made when it ran again to verify the cache; nil where it did not.
	Again *Again
	Err   error
}

// Again is the result of running a step that is cached.
type Again struct {
	Layer Layer
	// Err is why the step failed this time, or nil.
	Err error
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
	Cache    Cache
	Runner   Runner
	Observer Observer
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
func Solve(ctx context.Context, roots []*llb.Vertex, o Options) ([]*Chain, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &solve{opts: o, nodes: map[llb.Digest]*node{}, completions: make(chan completion)}
	var wanted []*node
	for _, v := range roots {
		wanted = append(wanted, s.add(v))
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
			if s.nodes[in.Digest()] == nil {
				stack = append(stack, visit{v: in})
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
			i := s.nodes[in.Digest()]
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
	v := n.vertex
	s.opts.Observer.Started(v)
	var o Outcome
	defer func() {
		if p := recover(); p != nil {
			err = &PanicError{Value: p, Stack: debug.Stack()}
		}
		o.Err = err
		s.opts.Observer.Finished(v, o)
	}()

	in := make([]*Chain, len(n.inputs))
	for i, input := range n.inputs {
		in[i] = input.output
	}
	step, err := s.opts.Runner.Plan(ctx, v, in)
	if err != nil {
		return nil, err
	}
	if step.Close != nil {
		defer step.Close()
	}
	if step.Done {
		return step.Root, nil
	}
	o, err = s.probeOrRun(ctx, v, step)
	if err != nil {
		return nil, err
	}
	return in[0].Push(o.Record.Layer), nil
}

// probeOrRun returns the record of a step: an earlier one, or that of running it now. Whoever holds the key's lock is the
// only one to run it, so equal work in other goroutines and processes is waited for and then found in the cache.
func (s *solve) probeOrRun(ctx context.Context, v *llb.Vertex, step Step) (Outcome, error) {
	key := KeyOf(step.Inputs)
	var miss *Miss
	if v.Meta().NoCache {
		miss = &Miss{Reason: "caching is off for this step"}
	} else {
		r, err := s.get(key)
		if err == nil {
			return s.hit(ctx, v, key, step, r)
		}
		if !errors.As(err, &miss) {
			return Outcome{}, err
		}
	}
	unlock, err := s.opts.Cache.Lock(ctx, key)
	if err != nil {
		return Outcome{Miss: miss}, err
	}
	defer unlock()
	if !v.Meta().NoCache {
		r, err := s.get(key)
		if err == nil {
			return s.hit(ctx, v, key, step, r)
		}
		if !errors.As(err, &miss) {
			return Outcome{}, err
		}
	}
	var last *Record
	same := false
	if h, ok := s.opts.Cache.(History); ok {
		last, same = h.Last(v)
	}
	r, err := s.run(ctx, v, key, step, last)
	if !same {
		last = nil
	}
	return Outcome{Record: r, Miss: miss, Last: last}, err
}

func (s *solve) get(key Key) (*Record, error) {
	r, err := s.opts.Cache.Get(key)
	if err != nil {
		return nil, err
	}
	err = s.opts.Runner.Missing(r.Layer)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &Miss{Reason: fmt.Sprintf("layer %s is gone", r.Layer.ID)}
	case err != nil:
		return nil, &Miss{Reason: err.Error()}
	}
	return r, nil
}

// hit returns the outcome of a step whose record is r, which is run again if it is to be verified.
func (s *solve) hit(ctx context.Context, v *llb.Vertex, key Key, step Step, r *Record) (Outcome, error) {
	o := Outcome{Cached: true, Record: r}
	if h, ok := s.opts.Cache.(History); ok {
		_ = h.SetLast(v, key) // without it the next explanation says less, and no result changes
	}
	if !s.opts.Verify {
		return o, nil
	}
	log, err := s.opts.Cache.NewLog()
	if err != nil {
		return o, err
	}
	defer log.Close()
	tee := &tee{observer: s.opts.Observer, vertex: v, log: log}
	o.Again = &Again{}
	o.Again.Layer, o.Again.Err = step.Run(ctx, Job{Stdout: tee.stream(1), Stderr: tee.stream(2)})
	if ctx.Err() != nil {
		return o, context.Cause(ctx)
	}
	return o, nil
}

func (s *solve) run(ctx context.Context, v *llb.Vertex, key Key, step Step, last *Record) (*Record, error) {
	log, err := s.opts.Cache.NewLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	tee := &tee{observer: s.opts.Observer, vertex: v, log: log}
	started := time.Now()
	job := Job{Stdout: tee.stream(1), Stderr: tee.stream(2)}
	if last != nil {
		job.Last = last.Layer
	}
	layer, err := step.Run(ctx, job)
	if err != nil && ctx.Err() == nil && tee.size() > 0 {
		// A log that cannot be kept is no reason to say less of the failure.
		file, _ := s.opts.Cache.PutFailed(key, log)
		return nil, &VertexError{Vertex: v, Err: err, LogFile: file}
	}
	if err != nil {
		return nil, err
	}
	r := &Record{Layer: layer, Inputs: step.Inputs, Name: v.Meta().Name(), Started: started, Took: time.Since(started), LogSize: tee.size()}
	if err := s.opts.Cache.Put(key, r, log); err != nil {
		return nil, err
	}
	if h, ok := s.opts.Cache.(History); ok {
		return r, h.SetLast(v, key)
	}
	return r, nil
}
