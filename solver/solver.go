// Package solver decides which steps of a graph run, and when: it probes the cache from the bottom up, runs what is
// missed, several at a time, and stops everything at the first failure. It does not know what any op does.
package solver

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
)

// Miss is why the cache has no record: a key that was never seen, or a record that is damaged or not to be trusted.
type Miss struct {
	Reason string
	// Err is why a record could not be read; nil where there is none.
	Err error
}

func (m *Miss) Error() string { return m.Reason }

// Unwrap returns Err.
func (m *Miss) Unwrap() error { return m.Err }

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

// LastBuild is what a Cache may also know: what a step made in the last build, whatever has changed since then.
type LastBuild interface {
	// Last looks up what the last build made of a step, in this order: by the vertex's digest, by its place, and by the same place in
	// another project, for which same is false: that may serve as something to start from, but does not explain why the step runs. It
	// returns nil if there is none, and a record without Inputs if another version of kiln wrote it.
	Last(v *llb.Vertex) (r *Record, same bool)
	// SetLast remembers that the record under key is the vertex's. Where that is known already nothing is written.
	SetLast(v *llb.Vertex, key Key) error
}

// Log takes the output of one step. Close without a Put or PutFailed throws it away.
type Log interface {
	io.WriteCloser
}

// Explainer says how steps differ from what they were. Implementations are safe for concurrent use.
type Explainer interface {
	// Inputs compares the inputs of a step with those that it had in the last build. Values that are secrets are hidden.
	Inputs(now, last []Input) (changes []events.Change, more int)
	// Files compares what a step made with what it made before.
	Files(now, last Layer) events.Files
	// Kinds is Files, which also says in what the bytes of files differ.
	Kinds(ctx context.Context, now, last Layer) events.Files
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

// ImageError is returned by an Executor that could not fetch an image which a step stands on: the image's vertex has failed, not the
// step's.
type ImageError struct {
	Image llb.Image
	Err   error
}

func (e *ImageError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *ImageError) Unwrap() error { return e.Err }

// Options say how a graph is solved.
type Options struct {
	Cache    Cache
	Planner  Planner
	Executor Executor
	// Demand is what is needed of the roots.
	Demand Demand
	// Events is told what happens to each vertex, and may be nil. The context that Planner and Executor are given has the vertex: see
	// events.From.
	Events *events.Stream
	// Explain says why steps run, and may be nil; Files also asks it about the files of a step that made others than in the last build.
	Explain Explainer
	Files   bool
	// Parallelism is how many vertices are worked on at once; at least 1.
	Parallelism int
	// Verify runs steps again that are cached, to see whether they make the same. The earlier result is used all the same.
	Verify bool
	// Twice runs each step a second time that runs, to see whether it makes the same. The first result is used.
	Twice bool
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
	outputs []Ref
	demand  []Demand // of each output
	// rank is the length of the longest way from here to a root: steps on the longest way start first.
	rank int
	// ended is set once its outputs are known, and read by other goroutines than the solver's.
	ended atomic.Bool
	// known are the outputs of which only the record is there, forced says that their layers are to be made, and waiters wait for that.
	known   []int
	forced  bool
	waiters []*node
	task    *events.Task // of a step that waits for inputs to be made
}

type completion struct {
	node    *node
	outputs []Ref
	known   []int // outputs of which only the record is there
	err     error
}

// Solve brings about the outputs of the roots and returns them in their order. The error of the vertex that failed first
// is returned as *VertexError, after everything that was running has ended; a ctx that ends is returned as its cause.
//
//   - A vertex is ready once all its inputs are done, and is worked on as soon as there is room.
//   - Work happens in goroutines; states change only here, one completion at a time.
//   - The first failure cancels the work of all others, starts nothing more, and waits for what runs.
//   - When nothing is ready or working, every root is done. Known steps below them are then made.
func Solve(ctx context.Context, roots []llb.Output, o Options) ([]Ref, error) {
	for changes := 0; ; changes++ {
		out, err := solveOnce(ctx, roots, o, changes < maxChanges)
		if err != errChanged {
			return out, err
		}
	}
}

// solveOnce is Solve. With lazy, records whose layers are missing are enough for steps that no other needs, and the error is errChanged if
// one of them was needed after all and made something else.
func solveOnce(ctx context.Context, roots []llb.Output, o Options, lazy bool) ([]Ref, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &solve{opts: o, lazy: lazy, nodes: map[llb.Digest]*node{}, completions: make(chan completion)}
	var wanted []*node
	for _, v := range roots {
		wanted = append(wanted, s.add(v.Vertex))
	}
	for _, n := range wanted {
		s.rank(n, 0)
	}
	s.demand(roots)
	s.planned()
	for _, n := range s.order {
		if n.pending == 0 {
			s.set(n, ready)
		}
	}

	var first error
	defer s.abandon()
	for s.more(roots, first) {
		for first == nil && s.count[working] < max(1, o.Parallelism) && s.count[ready] > 0 {
			n := s.pop()
			in, lacking := s.inputs(n)
			s.set(n, working)
			go func() { s.completions <- s.work(ctx, n, in, lacking) }()
		}
		c := <-s.completions
		if c.err == errUnmade {
			s.wait(c.node)
			continue
		}
		if c.err != nil {
			s.set(c.node, failed)
			if first == nil {
				first = c.err
				if !errors.As(first, new(*VertexError)) {
					first = &VertexError{Vertex: s.failed(c.node, c.err), Err: c.err}
				}
				if cause := context.Cause(ctx); cause != nil {
					first = cause
				}
				cancel(errSibling)
			}
			continue
		}
		if !s.end(c) && first == nil {
			first = errChanged // what runs goes on, since it is found when the graph is solved again
		}
	}
	if first != nil {
		return nil, first
	}
	outputs := make([]Ref, len(wanted))
	for i, n := range wanted {
		if n.state != done {
			panic(fmt.Sprintf("BUG: nothing left to do, and %s is not done", n.vertex.Meta().Name()))
		}
		outputs[i] = n.outputs[roots[i].Index]
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

// failed returns the vertex that an error of the work on a node is about.
func (s *solve) failed(n *node, err error) *llb.Vertex {
	if e, ok := errors.AsType[*ImageError](err); ok {
		for _, other := range s.order {
			if other.vertex.Op() == llb.Op(e.Image) {
				return other.vertex
			}
		}
	}
	return n.vertex
}

// ofOther reports whether an error is that of another vertex.
func ofOther(err error, v *llb.Vertex) bool {
	e, ok := errors.AsType[*VertexError](err)
	return ok && e.Vertex != v
}

type solve struct {
	opts        Options
	nodes       map[llb.Digest]*node
	order       []*node // inputs before users
	queue       queue   // ready
	count       [failed + 1]int
	completions chan completion
	lazy        bool // steps may be known
	knowns      int  // how many have outputs that are
}

// more reports whether there is something to do, or to wait for, before the roots are made.
func (s *solve) more(roots []llb.Output, failed error) bool {
	if s.count[ready] == 0 && s.count[working] == 0 && failed == nil {
		for _, k := range s.unmade(roots) {
			s.force(k)
		}
	}
	return s.count[ready] > 0 && failed == nil || s.count[working] > 0
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
		n := &node{vertex: v, demand: make([]Demand, len(llb.Bases(v.Op())))}
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

// planned says how much there is to do.
func (s *solve) planned() {
	steps := 0
	for _, n := range s.order {
		if !events.Idle(n.vertex.Op().Kind()) {
			steps++
		}
	}
	s.opts.Events.Emit(events.Planned{Steps: steps})
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
		heap.Push(&s.queue, n)
	}
}

// pop takes the ready node with the longest way still to go.
func (s *solve) pop() *node {
	return heap.Pop(&s.queue).(*node)
}

// queue is a heap.Interface, the node with the longest way to a root first.
type queue []*node

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].rank > q[j].rank }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(*node)) }
func (q *queue) Pop() any {
	last := len(*q) - 1
	n := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return n
}

// work finds the outputs of a vertex over its inputs in the cache, or makes them.
func (s *solve) work(ctx context.Context, n *node, in []Ref, lacking bool) (c completion) {
	c.node = n
	if ctx.Err() != nil {
		c.err = context.Cause(ctx)
		return c
	}
	w := &work{solve: s, node: n, vertex: n.vertex, lacking: lacking}
	ctx = w.begin(ctx)
	defer func() {
		if p := recover(); p != nil {
			c.err = &PanicError{Value: p, Stack: debug.Stack()}
		}
		err := c.err
		if err == errUnmade {
			w.pause()
			return
		}
		shown := err
		if err != nil && ctx.Err() != nil {
			shown = context.Cause(ctx) // whatever a step says that is stopped, it has not failed
		} else if errors.As(err, new(*ImageError)) || ofOther(err, n.vertex) {
			shown = errSibling
		}
		w.task.Finish(w.finished, shown)
	}()

	for plans := 1; ; plans++ {
		c.outputs, c.err = w.planAndRun(ctx, in)
		c.known = w.known
		if stale, ok := errors.AsType[Stale](c.err); !ok || !stale.Stale() || plans == maxPlans {
			return c
		}
	}
}

// maxPlans is how many times a step is planned whose plan does not hold any more when it runs.
const maxPlans = 6

// Stale is an error that says that a step has failed because what it reads is not what it was when the step was planned: with another plan
// it may not fail.
type Stale interface {
	error
	Stale() bool
}

// planAndRun plans a step over its inputs, and finds its outputs in the cache, or makes them.
func (w *work) planAndRun(ctx context.Context, in []Ref) ([]Ref, error) {
	s, n := w.solve, w.node
	from, r, found, err := w.shortcut(ctx, in)
	if err != nil {
		return nil, err
	}
	if found {
		return w.finish(r, in)
	}
	if !w.plannable(from) {
		return nil, errUnmade
	}
	w.plan, err = s.opts.Planner.Plan(ctx, n.vertex.Op(), n.vertex.Meta(), in)
	if err != nil {
		return nil, err
	}
	if w.plan.Done {
		for i, r := range w.plan.Outputs {
			if len(in) > 0 {
				break // its layers were made for it
			}
			s.opts.Executor.Expect(r, func() Demand { return s.expected(n, i) })
		}
		return w.plan.Outputs, nil
	}
	w.key = KeyOf(w.plan.Inputs)
	w.finished.Key = w.key.String()
	if r, err = w.probeOrRun(ctx); err != nil {
		return nil, err
	}
	if from != (Key{}) {
		s.opts.Cache.(Shortcuts).SetShortcut(from, w.key)
	}
	return w.finish(r, in)
}

// finish returns the outputs of a step that r is the record of.
func (w *work) finish(r *Record, in []Ref) ([]Ref, error) {
	for _, m := range r.Outputs {
		output := events.Output{Index: m.Output, Layer: m.ID}
		if m.Content != (Content{}) {
			output.Content = m.Content.String()
		}
		w.finished.Outputs = append(w.finished.Outputs, output)
	}
	for _, m := range r.Materials {
		w.finished.Materials = append(w.finished.Materials, events.Material{URI: m.URI, Digest: m.Digest})
	}
	out, err := stack(w.vertex.Op(), in, r.Outputs)
	if err != nil {
		return nil, err
	}
	w.node.ended.Store(true)
	if _, ok := w.opts.Cache.(Shortcuts); ok { // the layers may be elsewhere
		for i, r := range out {
			w.opts.Executor.Expect(r, func() Demand { return w.expected(w.node, i) })
		}
	}
	return out, nil
}

// stack returns the outputs of an op: what it made on top of what each of them lies on.
func stack(op llb.Op, in []Ref, made []Made) ([]Ref, error) {
	bases := llb.Bases(op)
	out := make([]Ref, len(bases))
	for i, base := range bases {
		if base != llb.NoBase {
			out[i] = in[base]
		}
	}
	for _, m := range made {
		if m.Output < 0 || m.Output >= len(out) {
			return nil, fmt.Errorf("BUG: a layer of output %d, and there are %d", m.Output, len(out))
		}
		out[m.Output] = out[m.Output].Push(m.Layer)
	}
	return out, nil
}

// work is a vertex that is being worked on.
type work struct {
	*solve
	node     *node
	vertex   *llb.Vertex
	task     *events.Task
	plan     Plan
	key      Key
	lacking  bool            // some layers of its inputs are only known
	known    []int           // its own outputs that are
	finished events.Finished // as far as it is known
}

// probeOrRun returns the record of a step: an earlier one, or that of running it now. Whoever holds the key's lock is the
// only one to run it, so equal work in other goroutines and processes is waited for and then found in the cache.
func (w *work) probeOrRun(ctx context.Context) (*Record, error) {
	r, miss, err := w.probe(ctx)
	if err != nil {
		return nil, err
	}
	if miss == nil {
		return r, w.hit(ctx, r)
	}
	if w.lacking {
		return nil, errUnmade
	}
	unlock, err := w.opts.Cache.Lock(ctx, w.key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r, miss, err = w.probe(ctx); err != nil {
		return nil, err
	}
	if miss == nil {
		return r, w.hit(ctx, r)
	}
	return w.run(ctx, miss)
}

// probe returns the record of the step, or why there is none.
func (w *work) probe(ctx context.Context) (*Record, *Miss, error) {
	w.known = nil
	var known []int
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
	if !fits(w.vertex.Op(), r.Outputs) {
		return nil, &Miss{Reason: "its record has other outputs than the step"}, nil
	}
	for _, m := range r.Outputs {
		err := w.opts.Executor.Missing(ctx, m.Layer)
		switch {
		case ctx.Err() != nil:
			return nil, nil, context.Cause(ctx)
		case errors.Is(err, fs.ErrNotExist) && w.mayBeKnown():
			known = append(known, m.Output)
		case errors.Is(err, fs.ErrNotExist) && w.node.forced:
			return nil, &Miss{Reason: "the cache has only the digest of what it made, and its files are needed"}, nil
		case errors.Is(err, fs.ErrNotExist):
			return nil, &Miss{Reason: fmt.Sprintf("layer %s is gone", m.ID)}, nil
		case err != nil:
			return nil, &Miss{Reason: err.Error()}, nil
		}
	}
	w.known = known
	return r, nil, nil
}

// fits reports whether an op can have made these layers: a record may come from elsewhere.
func fits(op llb.Op, made []Made) bool {
	layers := make([]int, len(llb.Bases(op)))
	for _, m := range made {
		if m.Output < 0 || m.Output >= len(layers) {
			return false
		}
		layers[m.Output]++
	}
	switch op.(type) {
	case llb.Merge, llb.Diff:
		return true // they stack any number of layers
	}
	for i, n := range layers {
		if n > 1 || i == 0 && n == 0 {
			return false
		}
	}
	return true
}

// hit uses the record r, and runs the step again if that is to be verified.
func (w *work) hit(ctx context.Context, r *Record) error {
	if h, ok := w.opts.Cache.(LastBuild); ok {
		_ = h.SetLast(w.vertex, w.key) // without it the next explanation says less, and no result changes
	}
	w.task.Emit(events.Cached{Key: w.key.String()})
	if !w.opts.Verify {
		return nil
	}
	return w.again(ctx, r)
}

// again runs a step again, and reports what is not as in its record.
func (w *work) again(ctx context.Context, r *Record) error {
	log, err := w.opts.Cache.NewLog()
	if err != nil {
		return err
	}
	defer log.Close()
	tee := &tee{task: w.task, log: log}
	made, err := w.opts.Executor.Execute(ctx, w.plan.Work, Job{Stdout: tee.stream(1), Stderr: tee.stream(2), Demand: w.node.demand})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	again := events.Again{}
	if err != nil {
		_, again.Error = events.Outcome(err)
	} else if !slices.EqualFunc(made, r.Outputs, func(a, b Made) bool { return a.Output == b.Output && a.Content == b.Content }) {
		again.Differs = true
		if w.opts.Explain != nil && w.opts.Twice {
			again.Files = w.opts.Explain.Kinds(ctx, first(made), first(r.Outputs))
		} else if w.opts.Explain != nil {
			again.Files = w.opts.Explain.Files(first(made), first(r.Outputs))
		}
	}
	w.task.Emit(again)
	return nil
}

// first returns the first of the layers that a step made; the zero Layer for none.
func first(made []Made) Layer {
	if len(made) == 0 {
		return Layer{}
	}
	return made[0].Layer
}

// run runs the step and puts its record into the cache.
func (w *work) run(ctx context.Context, miss *Miss) (*Record, error) {
	job := Job{Demand: w.node.demand}
	var last *Record // in the last build
	if h, ok := w.opts.Cache.(LastBuild); ok {
		r, same := h.Last(w.vertex)
		switch {
		case r == nil:
		case len(r.Inputs) == 0:
			if same {
				miss = &Miss{Reason: "it ran last with another version of kiln, whose records have another form"}
			}
		default:
			job.Last = r.Outputs
			if same {
				last = r
			}
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
	made, err := w.opts.Executor.Execute(ctx, w.plan.Work, job)
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
		Outputs: made, Inputs: w.plan.Inputs, Materials: w.plan.Materials,
		Name: w.vertex.Meta().Name(), Started: started, Took: time.Since(started), LogSize: tee.size(),
	}
	if err := w.opts.Cache.Put(w.key, r, log); err != nil {
		return nil, err
	}
	if w.opts.Files && slices.ContainsFunc(missed.Changes, func(c events.Change) bool { return c.Input == events.InputFiles }) {
		w.task.Emit(w.opts.Explain.Files(first(made), first(last.Outputs)))
	}
	if h, ok := w.opts.Cache.(LastBuild); ok {
		err = h.SetLast(w.vertex, w.key)
	}
	if err == nil && w.opts.Twice {
		err = w.second(ctx, r)
	}
	return r, err
}

// coarse is by how much the clock of time(2) may be behind: a tick of the kernel's timer.
const coarse = 20 * time.Millisecond

// second runs a step a second time, in another second of the clock than the first, so that times that are written are not the same.
func (w *work) second(ctx context.Context, r *Record) error {
	select {
	case <-time.After(time.Until(r.Started.Truncate(time.Second).Add(time.Second + coarse))):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return w.again(ctx, r)
}

// missed returns the event that says why the step runs.
func (w *work) missed(miss *Miss, last *Record) events.Missed {
	m := events.Missed{Reason: miss.Reason}
	if last == nil {
		return m
	}
	m.Last = first(last.Outputs).ID
	if w.opts.Explain != nil {
		m.Changes, m.More = w.opts.Explain.Inputs(w.plan.Inputs, last.Inputs)
	}
	return m
}
