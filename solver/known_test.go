package solver_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/solvertest"
)

// apart is a runner whose steps have keys that need entries of their inputs, and shortcuts to these.
type apart struct{ *runner }

func (apart) Shortcut(_ context.Context, op llb.Op, _ llb.Meta, in []solver.Ref) ([]solver.Input, error) {
	file, ok := op.(llb.File)
	if !ok {
		return nil, nil
	}
	inputs := []solver.Input{{Name: "shortcut", Value: file.Actions[0].Mkdir.Path}}
	for _, r := range in {
		inputs = append(inputs, solver.Input{Name: "input", Value: r.Content().String()})
	}
	return inputs, nil
}

// gone makes layers those of a cache that has only records of them.
func (a apart) gone(layers ...string) {
	a.runner.gone = map[string]bool{}
	for _, id := range layers {
		a.runner.gone[id] = true
	}
}

// locked makes a remembering safe for concurrent use.
type locked struct {
	*remembering
	mu sync.Mutex
}

func (l *locked) Shortcut(ctx context.Context, from solver.Key) (solver.Key, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.remembering.Shortcut(ctx, from)
}

func (l *locked) SetShortcut(from, to solver.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remembering.SetShortcut(from, to)
}

func TestKnownSteps(t *testing.T) {
	type graph struct {
		*build
		b    llb.Output
		root func(also ...llb.Output) llb.Output
	}
	// The root's layers lie on those of users alone, which read what "b" made over "a".
	newGraph := func() graph {
		g := graph{build: newBuild()}
		g.b = g.step("b", g.step("a"))
		g.root = func(also ...llb.Output) llb.Output {
			one := g.step("one", g.scratch, g.b)
			return g.step("root", append([]llb.Output{one, g.step("two", g.scratch, g.b)}, also...)...)
		}
		return g
	}
	solveWith := func(t *testing.T, r apart, c solver.Cache, root llb.Output, verify bool) []string {
		t.Helper()
		r.ran = nil
		o := &outcomes{}
		_, err := solver.Solve(t.Context(), []llb.Output{root}, solver.Options{
			Cache: c, Planner: r, Executor: r, Events: events.New(o), Parallelism: 4, Verify: verify,
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(o.running) > 0 {
			t.Errorf("%d vertices have not finished", len(o.running))
		}
		slices.Sort(r.ran)
		return r.ran
	}
	for _, test := range []struct {
		name    string
		gone    []string
		root    func(graph) llb.Output
		changed string // what b makes when it runs again
		verify  bool
		want    []string
	}{
		{name: "nobody needs them", gone: []string{"a", "b"}, root: func(g graph) llb.Output { return g.root() }},
		{
			name: "a new step needs one", gone: []string{"a", "b"}, want: []string{"a", "b", "new", "root"},
			root: func(g graph) llb.Output { return g.root(g.step("new", g.scratch, g.b)) },
		},
		{
			name: "one that makes something else", gone: []string{"a", "b"}, changed: "else", want: []string{"a", "b", "new", "one", "root", "two"},
			root: func(g graph) llb.Output { return g.root(g.step("new", g.scratch, g.b)) },
		},
		{name: "the root is one", gone: []string{"root"}, root: func(g graph) llb.Output { return g.root() }, want: []string{"root"}},
		{
			name: "the root lies on some", gone: []string{"a", "b"}, want: []string{"a", "b"},
			root: func(g graph) llb.Output { return g.b },
		},
		{
			name: "a process needs one", gone: []string{"a", "b"}, want: []string{"a", "b", "exec"},
			root: func(g graph) llb.Output { return g.Add(llb.Exec{Cwd: "exec"}, llb.Meta{Text: "exec"}, g.b).Output(0) },
		},
		{
			name: "all is verified", gone: []string{"a", "b"}, verify: true, want: []string{"a", "b", "one", "root", "two"},
			root: func(g graph) llb.Output { return g.root() },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGraph()
			cache := &locked{remembering: &remembering{solvertest.NewMemory(), map[solver.Key]solver.Key{}}}
			r := apart{&runner{}}
			solveWith(t, r, cache, g.root(), false)
			solveWith(t, r, cache, g.b, false)
			r.gone(test.gone...)
			r.run = func(_ context.Context, path string, _ solver.Job) error { // what runs is there again
				r.mu.Lock()
				defer r.mu.Unlock()
				delete(r.runner.gone, path)
				return nil
			}
			r.content = func(path string) string {
				if path == "b" && test.changed != "" {
					return test.changed
				}
				return path
			}
			ran := solveWith(t, r, cache, test.root(g), test.verify)
			if !slices.Equal(ran, test.want) {
				t.Errorf("%v ran, and not %v", ran, test.want)
			}
			if ran = solveWith(t, r, cache, test.root(g), false); len(ran) > 0 {
				t.Errorf("%v ran again", ran)
			}
		})
	}
}
