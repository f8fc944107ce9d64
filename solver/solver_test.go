package solver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/cache"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/solvertest"
)

// runner is a solver.Planner and a solver.Executor for graphs of File vertices that make one directory. What a vertex does is looked
// up by its path, which is its solver.Work.
type runner struct {
	mu       sync.Mutex
	ran      []string                   // paths of the vertices that Execute was called for, in the order of their ends
	gone     map[string]bool            // layers that are not in the store any more
	demands  map[string][]solver.Demand // of the vertices that were executed, by path
	expected map[string]solver.Demand   // of sources

	// content says what a step makes, its layer's content, from its path; nil for the path itself.
	content func(path string) string
	// key says what decides it beside the contents of its inputs; nil for its path.
	key func(path string) string
	// run, where not nil, is called in Execute.
	run func(ctx context.Context, path string, out solver.Job) error
	// unique is part of every layer's id, as the time of a RUN would be.
	unique string
}

func digest(s string) (c solver.Content) {
	if s != "" {
		c = solver.Content(solver.KeyOf([]solver.Input{{Name: s}}))
	}
	return c
}

func (r *runner) Plan(ctx context.Context, op llb.Op, meta llb.Meta, in []solver.Ref) (solver.Plan, error) {
	var name string
	switch op := op.(type) {
	case llb.File:
		name = op.Actions[0].Mkdir.Path
	case llb.Exec:
		name = op.Cwd
	case llb.Image:
		return solver.Plan{Done: true, Outputs: []solver.Ref{solver.NewRef(solver.Layer{ID: op.Ref, Content: digest(op.Ref)})}}, nil
	case llb.Merge:
		root := in[0]
		for _, l := range in[1].Layers() {
			root = root.Push(l)
		}
		return solver.Plan{Done: true, Outputs: []solver.Ref{root}}, nil
	default:
		return solver.Plan{Done: true, Outputs: []solver.Ref{{}}}, nil
	}
	inputs := []solver.Input{{Name: "path", Value: name}}
	if r.key != nil {
		inputs[0].Value = r.key(name)
	}
	for _, c := range in {
		inputs = append(inputs, solver.Input{Name: "root", Value: c.Content().String()})
	}
	return solver.Plan{Inputs: inputs, Work: workOf{name, len(llb.Bases(op))}}, nil
}

// workOf is the work of a vertex: its path, and how many outputs it has.
type workOf struct {
	path    string
	outputs int
}

func (r *runner) Uses(op llb.Op, inputs int) []solver.Use {
	uses := make([]solver.Use, inputs)
	for i := range uses {
		switch op.(type) {
		case llb.Exec:
			uses[i] = solver.UseFiles
		case llb.Merge:
			uses[i] = solver.UseLayers
		}
	}
	return uses
}

func (r *runner) Execute(ctx context.Context, w solver.Work, job solver.Job) ([]solver.Made, error) {
	work := w.(workOf)
	if r.run != nil {
		if err := r.run(ctx, work.path, job); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ran = append(r.ran, work.path)
	if r.demands == nil {
		r.demands = map[string][]solver.Demand{}
	}
	r.demands[work.path] = job.Demand
	content := work.path
	if r.content != nil {
		content = r.content(work.path)
	}
	made := []solver.Made{{Layer: solver.Layer{ID: work.path + r.unique, Content: digest(content)}}}
	for i := 1; i < work.outputs; i++ {
		id := fmt.Sprintf("%s#%d", work.path, i)
		made = append(made, solver.Made{Output: i, Layer: solver.Layer{ID: id, Content: digest(id)}})
	}
	return made, nil
}

func (r *runner) Expect(ref solver.Ref, demand func() solver.Demand) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.expected == nil {
		r.expected = map[string]solver.Demand{}
	}
	for _, l := range ref.Layers() {
		r.expected[l.ID] = demand()
	}
}

func (r *runner) Missing(_ context.Context, l solver.Layer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone[l.ID] {
		return fs.ErrNotExist
	}
	return nil
}

// outcome is how a vertex ended.
type outcome struct {
	cached   bool
	missed   *events.Missed
	finished events.Finished
}

// outcomes is an events.Sink.
type outcomes struct {
	mu      sync.Mutex
	running map[llb.Digest]*outcome
	names   map[llb.Digest]string
	by      map[string]outcome // of the vertices that have finished
	started int
	log     strings.Builder
}

func (o *outcomes) Event(e events.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.by == nil {
		o.running, o.names, o.by = map[llb.Digest]*outcome{}, map[llb.Digest]string{}, map[string]outcome{}
	}
	r := o.running[e.Vertex]
	switch b := e.Body.(type) {
	case events.Started:
		o.started++
		o.running[e.Vertex], o.names[e.Vertex] = &outcome{}, b.Text
	case events.Log:
		fmt.Fprintf(&o.log, "%d:%s", b.Stream, b.Data)
	case events.Cached:
		r.cached = true
	case events.Missed:
		r.missed = &b
	case events.Finished:
		r.finished = b
		delete(o.running, e.Vertex)
		if o.names[e.Vertex] != "scratch" {
			o.by[o.names[e.Vertex]] = *r
		}
	}
}

func (o *outcomes) cached() (names []string) {
	for name, out := range o.by {
		if out.cached {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// build is a graph under construction.
type build struct {
	llb.Graph
	scratch llb.Output
}

func newBuild() *build {
	b := &build{}
	b.scratch = b.Add(llb.Scratch{}, llb.Meta{Text: "scratch"}).Output(0)
	return b
}

// mkdir is an op that tells a vertex from others.
func mkdir(path string) llb.Op {
	return llb.File{Actions: []llb.Action{{Mkdir: &llb.Mkdir{Path: path}}}}
}

func (b *build) step(name string, inputs ...llb.Output) llb.Output {
	if len(inputs) == 0 {
		inputs = []llb.Output{b.scratch}
	}
	return b.Add(mkdir(name), llb.Meta{Text: name}, inputs...).Output(0)
}

func solve(t *testing.T, r *runner, c solver.Cache, roots ...llb.Output) ([]solver.Ref, *outcomes, error) {
	t.Helper()
	o := &outcomes{}
	out, err := solver.Solve(t.Context(), roots, solver.Options{Cache: c, Planner: r, Executor: r, Events: events.New(o), Parallelism: 8})
	if len(o.running) != 0 {
		t.Errorf("%d vertices have not finished", len(o.running))
	}
	return out, o, err
}

func mustSolve(t *testing.T, r *runner, c solver.Cache, roots ...llb.Output) ([]solver.Ref, *outcomes) {
	t.Helper()
	out, o, err := solve(t, r, c, roots...)
	if err != nil {
		t.Fatal(err)
	}
	return out, o
}

// top returns the id of a root's uppermost layer.
func top(r solver.Ref) string {
	layers := r.Layers()
	return layers[len(layers)-1].ID
}

func TestMemory(t *testing.T) {
	c := solvertest.NewMemory()
	solvertest.TestCache(t, func() solver.Cache { return c })
}

// forEachCache runs a test with the double and with the cache that kiln has.
func forEachCache(t *testing.T, f func(t *testing.T, c solver.Cache)) {
	t.Run("memory", func(t *testing.T) { f(t, solvertest.NewMemory()) })
	t.Run("disk", func(t *testing.T) {
		c, err := cache.Open(t.TempDir(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		f(t, c)
	})
}

func TestIndependentStepsRunTogether(t *testing.T) {
	b := newBuild()
	var roots []llb.Output
	const n = 5
	for i := range n {
		roots = append(roots, b.step(fmt.Sprint(i)))
	}
	// Each waits until all have come, so this ends only if they run side by side.
	var all sync.WaitGroup
	all.Add(n)
	r := &runner{run: func(ctx context.Context, path string, _ solver.Job) error {
		all.Done()
		all.Wait()
		return nil
	}}
	mustSolve(t, r, solvertest.NewMemory(), roots...)
	if len(r.ran) != n {
		t.Fatalf("ran %v", r.ran)
	}
}

func TestParallelismIsTheLimit(t *testing.T) {
	b := newBuild()
	var roots []llb.Output
	const n, limit = 30, 3
	for i := range n {
		roots = append(roots, b.step(fmt.Sprint(i)))
	}
	var mu sync.Mutex
	changed := sync.NewCond(&mu)
	now, done, most := 0, 0, 0
	// Each waits until as many as may run do, and then gives more of them the time to begin.
	r := &runner{run: func(context.Context, string, solver.Job) error {
		mu.Lock()
		now++
		most = max(most, now)
		for changed.Broadcast(); now < limit && done <= n-limit; {
			changed.Wait()
		}
		mu.Unlock()
		for range 100 {
			runtime.Gosched()
		}
		mu.Lock()
		now, done = now-1, done+1
		changed.Broadcast()
		mu.Unlock()
		return nil
	}}
	_, err := solver.Solve(t.Context(), roots, solver.Options{Cache: solvertest.NewMemory(), Planner: r, Executor: r, Parallelism: limit})
	if err != nil {
		t.Fatal(err)
	}
	if most != limit {
		t.Fatalf("%d steps at once, and %d may be", most, limit)
	}
}

// TestInputsBeforeUsers builds random graphs: a step never runs before what it reads, and each step once.
func TestInputsBeforeUsers(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		b := newBuild()
		var steps []llb.Output
		for i := range 60 {
			var inputs []llb.Output
			for range rnd.IntN(4) {
				if i > 0 {
					inputs = append(inputs, steps[rnd.IntN(i)])
				}
			}
			steps = append(steps, b.step(fmt.Sprint(i), inputs...))
		}
		done := map[string]bool{}
		var mu sync.Mutex
		needs := map[string][]string{}
		for _, v := range steps {
			name := v.Vertex.Meta().Name()
			for _, in := range v.Vertex.Inputs() {
				needs[name] = append(needs[name], in.Vertex.Meta().Name())
			}
		}
		r := &runner{run: func(_ context.Context, path string, _ solver.Job) error {
			mu.Lock()
			defer mu.Unlock()
			for _, in := range needs[path] {
				if in != "scratch" && !done[in] {
					return fmt.Errorf("%s runs before its input %s", path, in)
				}
			}
			if done[path] {
				return fmt.Errorf("%s runs twice", path)
			}
			done[path] = true
			return nil
		}}
		mustSolve(t, r, solvertest.NewMemory(), steps...)
		if len(done) != len(steps) {
			t.Fatalf("%d of %d steps ran", len(done), len(steps))
		}
	}
}

func TestEqualVerticesAreOne(t *testing.T) {
	b := newBuild()
	a1, a2 := b.step("a"), b.step("a")
	r := &runner{}
	out, o := mustSolve(t, r, solvertest.NewMemory(), b.step("x", a1), b.step("y", a2), a1)
	slices.Sort(r.ran)
	if got := strings.Join(r.ran, " "); got != "a x y" {
		t.Fatalf("ran %s", got)
	}
	if o.started != 4 { // and scratch
		t.Errorf("%d vertices started", o.started)
	}
	if got := top(out[0].Below(out[0].Depth()-1)) + " " + top(out[1].Below(out[1].Depth()-1)) + " " + top(out[2]); got != "a a a" {
		t.Errorf("outputs stand on %s", got)
	}
}

// TestEqualKeysRunOnce has different vertices of one key, as two stages that copy the same files.
func TestEqualKeysRunOnce(t *testing.T) {
	forEachCache(t, func(t *testing.T, c solver.Cache) {
		b := newBuild()
		var roots []llb.Output
		for i := range 6 {
			roots = append(roots, b.step(fmt.Sprint(i)))
		}
		r := &runner{key: func(string) string { return "same" }, content: func(string) string { return "same" }}
		out, o := mustSolve(t, r, c, roots...)
		if len(r.ran) != 1 || len(o.cached()) != 5 {
			t.Fatalf("ran %v, cached %v", r.ran, o.cached())
		}
		for _, chain := range out {
			if top(chain) != r.ran[0] {
				t.Errorf("an output is layer %s, and %s ran", top(chain), r.ran[0])
			}
		}
	})
}

func TestSecondBuildIsCached(t *testing.T) {
	forEachCache(t, func(t *testing.T, c solver.Cache) {
		b := newBuild()
		root := b.step("c", b.step("b", b.step("a")))
		first, o := mustSolve(t, &runner{}, c, root)
		for name, out := range o.by {
			if out.missed == nil || out.missed.Reason == "" || out.cached || len(out.finished.Outputs) != 1 || out.finished.Outputs[0].Layer != name {
				t.Errorf("%s ran with outcome %+v, want a reason and its layer", name, out)
			}
		}
		r := &runner{}
		second, o := mustSolve(t, r, c, root)
		if len(r.ran) != 0 || len(o.cached()) != 3 {
			t.Fatalf("ran %v, cached %v", r.ran, o.cached())
		}
		if !slices.Equal(first[0].Layers(), second[0].Layers()) {
			t.Errorf("layers %v, then %v", first[0].Layers(), second[0].Layers())
		}
	})
}

// TestEarlyCutOff: a step whose inputs changed runs again; if it makes the same content, also none, what follows is cached.
func TestEarlyCutOff(t *testing.T) {
	for _, made := range []string{"same", ""} {
		forEachCache(t, func(t *testing.T, c solver.Cache) {
			b := newBuild()
			root := b.step("c", b.step("b", b.step("a")))
			content := func(path string) string {
				if path == "a" {
					return made
				}
				return path
			}
			mustSolve(t, &runner{content: content}, c, root)
			r := &runner{content: content, unique: "'", key: func(path string) string {
				if path == "a" {
					return "a was edited"
				}
				return path
			}}
			_, o := mustSolve(t, r, c, root)
			if got := strings.Join(r.ran, " "); got != "a" {
				t.Errorf("content %q: ran %s, want a alone", made, got)
			}
			if got := strings.Join(o.cached(), " "); got != "b c" {
				t.Errorf("content %q: cached %s, want b c", made, got)
			}
			// And other content is not cut off.
			r.content, r.ran = func(path string) string { return path + " is new" }, nil
			r.key = func(path string) string { return path + " again" }
			mustSolve(t, r, c, root)
			if got := strings.Join(r.ran, " "); got != "a b c" {
				t.Errorf("ran %s, want all", got)
			}
		})
	}
}

func TestNoCache(t *testing.T) {
	forEachCache(t, func(t *testing.T, c solver.Cache) {
		b := newBuild()
		a := b.step("a")
		root := b.Add(mkdir("b"), llb.Meta{Text: "b", NoCache: true}, a).Output(0)
		mustSolve(t, &runner{}, c, root)
		r := &runner{unique: "'"}
		out, o := mustSolve(t, r, c, root)
		if got := strings.Join(r.ran, " "); got != "b" {
			t.Fatalf("ran %s, want b alone", got)
		}
		if miss := o.by["b"].missed; miss == nil || miss.Reason == "" {
			t.Errorf("b's miss is %v", miss)
		}
		if top(out[0]) != "b'" {
			t.Errorf("the output is %s, want the new layer", top(out[0]))
		}
		// Its result is remembered for those who allow that.
		r = &runner{}
		mustSolve(t, r, c, b.step("b", a))
		if len(r.ran) != 0 {
			t.Errorf("ran %v", r.ran)
		}
	})
}

func TestLayerGone(t *testing.T) {
	c := solvertest.NewMemory()
	b := newBuild()
	root := b.step("b", b.step("a"))
	mustSolve(t, &runner{}, c, root)
	r := &runner{gone: map[string]bool{"a": true}, unique: "'"}
	_, o := mustSolve(t, r, c, root)
	if got := strings.Join(r.ran, " "); got != "a" {
		t.Fatalf("ran %s, want a", got)
	}
	if miss := o.by["a"].missed; miss == nil || !strings.Contains(miss.Reason, "layer a") {
		t.Errorf("the reason is %v, want one that names the layer", miss)
	}
	if !o.by["b"].cached {
		t.Error("b ran, and it reads the same content")
	}
}

// broken is a cache whose disk fails.
type broken struct {
	*solvertest.Memory
	err error
}

func (b broken) Get(solver.Key) (*solver.Record, error) { return nil, b.err }

func TestCacheFails(t *testing.T) {
	want := errors.New("input/output error")
	r := &runner{}
	_, _, err := solve(t, r, broken{solvertest.NewMemory(), want}, newBuild().step("a"))
	if !errors.Is(err, want) {
		t.Fatalf("Solve = %v, want the cache's error", err)
	}
	if len(r.ran) != 0 {
		t.Errorf("ran %v", r.ran)
	}
}

// TestFirstFailure: when a step fails, the others are cancelled, what has not begun never does, Solve waits for those that
// run, and the error is the first one's.
func TestFirstFailure(t *testing.T) {
	b := newBuild()
	boom := errors.New("boom")
	slow, failing := b.step("slow"), b.step("failing")
	after := b.step("after", slow, failing)
	slowRuns := make(chan struct{})
	var ended []string
	r := &runner{run: func(ctx context.Context, path string, _ solver.Job) error {
		switch path {
		case "slow":
			close(slowRuns)
			<-ctx.Done()
			runtime.Gosched()
			ended = append(ended, "slow") // Solve must not return before this: the race detector would tell
			return errors.New("killed")
		case "failing":
			<-slowRuns
			return boom
		}
		t.Errorf("%s runs", path)
		return nil
	}}
	_, o, err := solve(t, r, solvertest.NewMemory(), after)
	failed, ok := errors.AsType[*solver.VertexError](err)
	if !ok || failed.Vertex != failing.Vertex || !errors.Is(err, boom) {
		t.Fatalf("Solve = %v, want the failure of the step that failed first", err)
	}
	if len(ended) != 1 {
		t.Error("Solve returned before the other step had ended")
	}
	if out := o.by["failing"]; out.finished.Error != "boom" || out.finished.Canceled || out.missed == nil {
		t.Errorf("the outcome is %+v", out)
	}
	if out := o.by["slow"]; !out.finished.Canceled || out.finished.Error != "" {
		t.Errorf("the outcome of the step that was stopped is %+v", out)
	}
}

// TestFailureIsNotRemembered: what failed runs again, and its log is thrown away.
func TestFailureIsNotRemembered(t *testing.T) {
	forEachCache(t, func(t *testing.T, c solver.Cache) {
		root := newBuild().step("a")
		_, _, err := solve(t, &runner{run: func(context.Context, string, solver.Job) error { return errors.New("boom") }}, c, root)
		if err == nil {
			t.Fatal("no error")
		}
		r := &runner{}
		mustSolve(t, r, c, root)
		if len(r.ran) != 1 {
			t.Errorf("ran %v", r.ran)
		}
	})
}

type staleError struct{ error }

func (staleError) Stale() bool { return true }

// TestStale: a step whose plan does not hold when it runs is planned again, a few times, and its record is that of the plan which held.
func TestStale(t *testing.T) {
	forEachCache(t, func(t *testing.T, c solver.Cache) {
		root := newBuild().step("a")
		for _, fails := range []int{3, 100} {
			plans, runs := 0, 0
			r := &runner{
				key: func(string) string { plans++; return fmt.Sprint(fails, " ", plans) },
				run: func(context.Context, string, solver.Job) error {
					if runs++; runs <= fails {
						return fmt.Errorf("wrapped: %w", staleError{errors.New("changed")})
					}
					return nil
				},
			}
			_, _, err := solve(t, r, c, root)
			if (err == nil) != (fails == 3) || runs != plans || runs > 6 {
				t.Errorf("a step that fails %d times was planned %d times and ran %d times: %v", fails, plans, runs, err)
			}
		}
		r := &runner{key: func(string) string { return "3 4" }}
		if _, o := mustSolve(t, r, c, root); len(o.cached()) != 1 {
			t.Errorf("ran %v, and the plan that held is that of a record", r.ran)
		}
		r = &runner{key: func(string) string { return "3 1" }}
		if mustSolve(t, r, c, root); len(r.ran) != 1 {
			t.Error("a plan that did not hold is that of a record")
		}
	})
}

func TestCancel(t *testing.T) {
	b := newBuild()
	root := b.step("b", b.step("a"))
	cause := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	r := &runner{run: func(ctx context.Context, path string, _ solver.Job) error {
		cancel(cause)
		<-ctx.Done()
		return errors.New("process killed by SIGKILL")
	}}
	_, err := solver.Solve(ctx, []llb.Output{root}, solver.Options{Cache: solvertest.NewMemory(), Planner: r, Executor: r, Parallelism: 8})
	if !errors.Is(err, cause) {
		t.Fatalf("Solve = %v, want the cause", err)
	}
	// A context that has ended already starts nothing.
	o := &outcomes{}
	_, err = solver.Solve(ctx, []llb.Output{root}, solver.Options{Cache: solvertest.NewMemory(), Planner: r, Executor: r, Events: events.New(o), Parallelism: 8})
	if !errors.Is(err, cause) || o.started != 0 {
		t.Fatalf("Solve = %v after %d starts", err, o.started)
	}
}

// TestCancelWhileWaiting: a step that waits for the one that does the same work elsewhere ends with the build.
func TestCancelWhileWaiting(t *testing.T) {
	forEachCache(t, func(t *testing.T, c solver.Cache) {
		root := newBuild().step("a")
		running := make(chan struct{})
		finish := make(chan struct{})
		other := make(chan error)
		go func() {
			r := &runner{run: func(context.Context, string, solver.Job) error {
				close(running)
				<-finish
				return nil
			}}
			_, err := solver.Solve(t.Context(), []llb.Output{root}, solver.Options{Cache: c, Planner: r, Executor: r})
			other <- err
		}()
		<-running
		cause := errors.New("interrupted")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Millisecond, func() { cancel(cause) })
		_, err := solver.Solve(ctx, []llb.Output{root}, solver.Options{Cache: c, Planner: &runner{}, Executor: &runner{}})
		if !errors.Is(err, cause) {
			t.Errorf("Solve = %v, want the cause", err)
		}
		close(finish)
		if err := <-other; err != nil {
			t.Errorf("the other build: %v", err)
		}
	})
}

func TestLog(t *testing.T) {
	c := solvertest.NewMemory()
	r := &runner{run: func(_ context.Context, _ string, out solver.Job) error {
		fmt.Fprint(out.Stdout, "out\n")
		fmt.Fprint(out.Stderr, "err\n")
		return nil
	}}
	_, o := mustSolve(t, r, c, newBuild().step("a"))
	if got := o.log.String(); got != "1:out\n2:err\n" {
		t.Errorf("the sink saw %q", got)
	}
	key, err := solver.ParseKey(o.by["a"].finished.Key)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := c.Get(key)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Log(key); got != "out\nerr\n" || rec.LogSize != int64(len(got)) {
		t.Errorf("the record has the log %q and says it has %d bytes", got, rec.LogSize)
	}
}

// TestLargeGraphs: neither depth nor width costs stack, nor time that grows with the square.
func TestLargeGraphs(t *testing.T) {
	const n = 10000
	chain := newBuild()
	top := chain.scratch
	for i := range n {
		top = chain.step(fmt.Sprint(i), top)
	}
	fan := newBuild()
	var leaves []llb.Output
	for i := range n {
		leaves = append(leaves, fan.step(fmt.Sprint(i)))
	}
	for name, root := range map[string]llb.Output{"chain": top, "fan": fan.step("all", leaves...)} {
		t.Run(name, func(t *testing.T) {
			c := solvertest.NewMemory()
			for _, want := range []int{n, 0} {
				r := &runner{}
				out, _ := mustSolve(t, r, c, root)
				if got := len(r.ran); got != want && got != want+1 {
					t.Errorf("%d steps ran, want %d", got, want)
				}
				if name == "chain" && (out[0].Depth() != n || len(out[0].Layers()) != n) {
					t.Errorf("the output has %d layers", out[0].Depth())
				}
			}
		})
	}
}

func TestNoGoroutinesAreLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	for i := range 50 {
		b := newBuild()
		var inputs []llb.Output
		for n := range 20 {
			inputs = append(inputs, b.step(fmt.Sprint(n)))
		}
		r := &runner{run: func(ctx context.Context, path string, _ solver.Job) error {
			if i%2 == 0 && path == "7" {
				return errors.New("boom")
			}
			return nil
		}}
		_, _, err := solve(t, r, solvertest.NewMemory(), b.step("all", inputs...))
		if (err != nil) != (i%2 == 0) {
			t.Fatal(err)
		}
	}
	// Goroutines that have delivered their result may need a moment to end.
	deadline := time.Now().Add(5 * time.Minute)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, and %d before", runtime.NumGoroutine(), before)
		}
		runtime.Gosched()
	}
}

func TestKeyOf(t *testing.T) {
	// No two different lists of inputs may be the same bytes, however names and values are cut.
	pieces := []string{"", "a", "b", "ab", "a\x00", "\x01\x00\x00\x00\x00\x00\x00\x00a"}
	seen := map[solver.Key]string{}
	add := func(in []solver.Input) {
		key, text := solver.KeyOf(in), fmt.Sprintf("%q", in)
		if other, ok := seen[key]; ok && other != text {
			t.Errorf("%s and %s have one key", text, other)
		}
		seen[key] = text
	}
	add(nil)
	for _, a := range pieces {
		for _, b := range pieces {
			add([]solver.Input{{Name: a, Value: b}})
			for _, c := range pieces {
				for _, d := range pieces {
					add([]solver.Input{{Name: a, Value: b}, {Name: c, Value: d}})
				}
			}
		}
	}
	key := solver.KeyOf(nil)
	if back, err := solver.ParseKey(key.String()); err != nil || back != key {
		t.Errorf("ParseKey(%s) = %s, %v", key, back, err)
	}
}

func TestRefContent(t *testing.T) {
	var empty solver.Ref
	layer := func(n byte) solver.Layer { return solver.Layer{ID: fmt.Sprint(n), Content: solver.Content{n}} }
	a := empty.Push(layer(1))
	if a.Content() == empty.Content() || a.Push(layer(2)).Content() == a.Content() {
		t.Error("a layer that changes something leaves the content as it was")
	}
	if a.Push(solver.Layer{ID: "x"}).Content() != a.Content() {
		t.Error("a layer without entries changes the content")
	}
	if empty.Push(layer(1)).Push(layer(2)).Content() == empty.Push(layer(2)).Push(layer(1)).Content() {
		t.Error("the order of layers does not matter")
	}
}

func TestRefChanges(t *testing.T) {
	var r solver.Ref
	var want []solver.Change
	for i := range 10 {
		if got := r.Changes(); !slices.Equal(got, want) {
			t.Errorf("after %d layers the changes are %v, not %v", i, got, want)
		}
		l := solver.Layer{ID: fmt.Sprint(i)}
		if i%3 == 1 {
			l.Content = solver.Content{byte(i)}
			want = append(want, solver.Change{Layer: l, Below: r.Content()})
		}
		r = r.Push(l)
	}
}

func TestRefEncodes(t *testing.T) {
	r := solver.NewRef(solver.Layer{ID: "a", Content: solver.Content{1}}, solver.Layer{ID: "b"}, solver.Layer{ID: "c", Content: solver.Content{3}})
	for _, want := range []solver.Ref{{}, {Local: &llb.Local{Name: "context"}}, r} {
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got solver.Ref
		if err := json.Unmarshal(data, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is read as %+v, %v", data, got, err)
		}
	}
	if below := r.Below(1); below.Depth() != 1 || top(below) != "a" || r.Below(5).Content() != r.Content() || r.Below(0) != (solver.Ref{}) {
		t.Errorf("the lowest layer is %+v", below)
	}
}

// A vertex can have several outputs, each on what its mount showed. A record has them all, and each user gets the one that it names.
func TestOutputs(t *testing.T) {
	forEachCache(t, func(t *testing.T, c solver.Cache) {
		b := newBuild()
		mount := b.step("mount")
		v := b.Add(llb.Exec{Cwd: "exec", Mounts: []llb.Mount{{Input: 1, Output: 2}, {Input: 0, Output: 1}}}, llb.Meta{Text: "exec"}, b.step("root"), mount)
		user := b.step("user", v.Output(2))
		for i, want := range []int{4, 0} {
			r := &runner{}
			out, o := mustSolve(t, r, c, v.Output(0), v.Output(1), v.Output(2), user)
			if len(r.ran) != want {
				t.Errorf("round %d: %v ran", i, r.ran)
			}
			for n, layers := range []string{"[root exec]", "[root exec#1]", "[mount exec#2]", "[mount exec#2 user]"} {
				var ids []string
				for _, l := range out[n].Layers() {
					ids = append(ids, l.ID)
				}
				if got := fmt.Sprint(ids); got != layers {
					t.Errorf("round %d: output %d is %s, want %s", i, n, got, layers)
				}
			}
			if got := o.by["exec"].finished.Outputs; len(got) != 3 {
				t.Errorf("round %d: the event has the outputs %v", i, got)
			}
		}
		// One of its layers is gone.
		r := &runner{gone: map[string]bool{"exec#1": true}}
		mustSolve(t, r, c, v.Output(0))
		if got := strings.Join(r.ran, " "); got != "exec" {
			t.Errorf("ran %s, want exec", got)
		}
	})
}

// What is needed of an output follows from the graph below the roots.
func TestDemand(t *testing.T) {
	b := newBuild()
	image := b.Add(llb.Image{Ref: "image"}, llb.Meta{Text: "image"}).Output(0)
	copied := b.step("copied", image)  // in the exported image, and nobody reads its files
	linked := b.step("linked")         // merged into the image
	inside := b.step("inside", copied) // a process runs in it
	exec := b.Add(llb.Exec{Cwd: "exec"}, llb.Meta{Text: "exec"}, inside).Output(0)
	merged := b.Add(llb.Merge{}, llb.Meta{Text: "merge"}, copied, linked).Output(0)
	solveWith := func(c solver.Cache, roots ...llb.Output) *runner {
		t.Helper()
		r := &runner{}
		_, err := solver.Solve(t.Context(), roots, solver.Options{
			Cache: c, Planner: r, Executor: r, Demand: solver.Demand{Blob: "gzip"}, Parallelism: 8,
		})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := solveWith(solvertest.NewMemory(), merged)
	blob := []solver.Demand{{Blob: "gzip"}}
	if !reflect.DeepEqual(r.demands, map[string][]solver.Demand{"copied": blob, "linked": blob}) || r.expected["image"] != blob[0] {
		t.Errorf("without a process: %+v, of the image %+v", r.demands, r.expected["image"])
	}
	c, err := cache.Open(t.TempDir(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r = solveWith(c, exec, merged)
	both := []solver.Demand{{Files: true, Blob: "gzip"}}
	want := map[string][]solver.Demand{"copied": both, "linked": blob, "inside": both, "exec": blob}
	if !reflect.DeepEqual(r.demands, want) || r.expected["image"] != both[0] {
		t.Errorf("with a process: %+v, of the image %+v", r.demands, r.expected["image"])
	}
	// All of it has run before: the files of the image are probably not needed again.
	if r = solveWith(c, exec, merged); r.expected["image"] != blob[0] {
		t.Errorf("the second time: %+v", r.expected["image"])
	}
}

// remembering is a cache with shortcuts.
type remembering struct {
	solver.Cache
	shortcuts map[solver.Key]solver.Key
}

func (r *remembering) Shortcut(_ context.Context, from solver.Key) (solver.Key, bool, error) {
	to, ok := r.shortcuts[from]
	return to, ok, nil
}

func (r *remembering) SetShortcut(from, to solver.Key) { r.shortcuts[from] = to }

// shortcutting is a runner that plans shortcuts of steps which have inputs, and counts how many steps it plans in full.
type shortcutting struct {
	*runner
	planned int
}

func (s *shortcutting) Plan(ctx context.Context, op llb.Op, meta llb.Meta, in []solver.Ref) (solver.Plan, error) {
	s.planned++
	return s.runner.Plan(ctx, op, meta, in)
}

func (s *shortcutting) Shortcut(_ context.Context, _ llb.Op, meta llb.Meta, in []solver.Ref) ([]solver.Input, error) {
	if len(in) == 0 {
		return nil, nil
	}
	return []solver.Input{{Name: "text", Value: meta.Text}, {Name: "input", Value: in[0].Content().String()}}, nil
}

// A step whose shortcut is known is not planned, unless its record is gone: then it is planned, and runs.
func TestShortcuts(t *testing.T) {
	b := newBuild()
	root := b.step("b", b.step("a"))
	cache := &remembering{solvertest.NewMemory(), map[solver.Key]solver.Key{}}
	for i, want := range []int{3, 1, 3} {
		r := &shortcutting{runner: &runner{}}
		if i == 2 {
			cache.Cache = solvertest.NewMemory()
		}
		_, err := solver.Solve(t.Context(), []llb.Output{root}, solver.Options{Cache: cache, Planner: r, Executor: r, Parallelism: 1})
		if err != nil {
			t.Fatal(err)
		}
		if r.planned != want {
			t.Errorf("build %d: %d steps were planned, want %d", i, r.planned, want)
		}
	}
}

// altering is a cache whose records have other outputs.
type altering struct {
	solver.Cache
	made []solver.Made
}

func (a altering) Get(key solver.Key) (*solver.Record, error) {
	r, err := a.Cache.Get(key)
	if err == nil {
		r.Outputs = a.made
	}
	return r, err
}

// A record with other outputs than the step can have, as somebody else may have written it, is no record of the step.
func TestForeignOutputs(t *testing.T) {
	layer := func(output int, id string) solver.Made {
		return solver.Made{Output: output, Layer: solver.Layer{ID: id, Content: digest(id)}}
	}
	for name, made := range map[string][]solver.Made{
		"none": {}, "one that there is not": {layer(1<<40, "x")}, "a negative one": {layer(-1, "x")}, "two": {layer(0, "x"), layer(0, "y")},
	} {
		cache := solvertest.NewMemory()
		root := newBuild().step("a")
		mustSolve(t, &runner{}, cache, root)
		r := &runner{}
		mustSolve(t, r, altering{cache, made}, root)
		if len(r.ran) != 1 {
			t.Errorf("%s: the step did not run", name)
		}
	}
}
