package solver

import (
	"context"
	"errors"
	"slices"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
)

// A step is known if its record was found, but not all layers of its outputs: a cache that travels has the records of all steps, and
// perhaps only the layers of an image. Its content is enough for the keys of the steps that use it. If these have layers, it never runs. It
// is made once a user of it is missed, or a root is to be had that has its layers. If that gives other layers than the record says, and a
// user has relied on the record, the graph is solved again, with what was made: so all steps of a build see the same result of a step.

// maxChanges is how often a graph is solved again because a step that was known has made something else. After that records without layers
// are misses.
const maxChanges = 20

// errChanged says that a step which was known has made something else than its record says.
var errChanged = errors.New("a step has made something else than its record says")

// errUnmade says that a step cannot be planned, or would have to run, over inputs of which a step is known alone.
var errUnmade = errors.New("a step needs an input that is only known")

// inputs returns the inputs of a node, and whether some of their layers were not made.
func (s *solve) inputs(n *node) (in []Ref, lacking bool) {
	in = make([]Ref, len(n.inputs))
	for i, input := range n.inputs {
		in[i] = input.outputs[n.vertex.Inputs()[i].Index]
	}
	return in, len(s.unmade(n.vertex.Inputs())) > 0
}

// unmade returns the nodes that have known outputs whose layers are in one of all.
func (s *solve) unmade(all []llb.Output) []*node {
	if s.knowns == 0 {
		return nil
	}
	var found []*node
	seen := map[llb.Output]bool{}
	stack := slices.Clone(all)
	for len(stack) > 0 {
		o := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if seen[o] {
			continue
		}
		seen[o] = true
		n, op := s.nodes[o.Vertex.Digest()], o.Vertex.Op()
		if slices.Contains(n.known, o.Index) && !slices.Contains(found, n) {
			found = append(found, n)
		}
		if base, ok := o.Base(); ok {
			stack = append(stack, base)
		}
		for i, use := range s.opts.Planner.Uses(op, len(n.inputs)) {
			if use == UseLayers {
				stack = append(stack, o.Vertex.Inputs()[i])
			}
		}
	}
	return found
}

// wait has a node wait until the known steps below its inputs are made.
func (s *solve) wait(n *node) {
	s.set(n, waiting)
	for _, k := range s.unmade(n.vertex.Inputs()) {
		n.pending++
		k.waiters = append(k.waiters, n)
		s.force(k)
	}
	if n.pending == 0 { // they were made meanwhile
		s.set(n, ready)
	}
}

// force has a known step be made.
func (s *solve) force(k *node) {
	if !k.forced {
		k.forced = true
		s.set(k, ready)
	}
}

// end notes the outputs of a node. It reports false if others have relied on what they were before.
func (s *solve) end(c completion) bool {
	n := c.node
	again := n.forced
	same := slices.EqualFunc(n.outputs, c.outputs, func(a, b Ref) bool { return slices.Equal(a.Layers(), b.Layers()) })
	n.outputs = c.outputs
	s.set(n, done)
	switch {
	case len(c.known) > 0:
		n.known = c.known
		s.knowns++
	case again:
		n.known = nil
		s.knowns--
	}
	users := n.users
	if again {
		users = n.waiters
		n.waiters = nil
	}
	for _, u := range users {
		if u.pending--; u.pending == 0 {
			s.set(u, ready)
		}
	}
	return !again || same || !slices.ContainsFunc(n.users, (*node).begun)
}

// begun reports whether a node has been worked on with its inputs as they are, or is.
func (n *node) begun() bool { return n.state == working || n.state == done }

// mayBeKnown reports whether a record without layers is enough for now.
func (w *work) mayBeKnown() bool {
	_, shortcuts := w.opts.Cache.(Shortcuts)
	return shortcuts && w.lazy && !w.node.forced && !w.opts.Verify
}

// pause keeps the step's task for when its inputs are made.
func (w *work) pause() {
	w.task.Emit(events.Waiting{})
	w.node.task = w.task
}

// begin begins the step's task, or goes on with one that has paused.
func (w *work) begin(ctx context.Context) context.Context {
	if w.task = w.node.task; w.task != nil {
		w.node.task = nil
		w.task.Emit(events.Resumed{})
	} else {
		w.task = w.opts.Events.Vertex(w.vertex)
	}
	return events.With(ctx, w.task)
}

// abandon ends the tasks of steps that wait for inputs which nobody makes any more.
func (s *solve) abandon() {
	for _, n := range s.order {
		if n.task != nil {
			n.task.Finish(events.Finished{}, errSibling)
		}
	}
}

// plannable reports whether a step can be planned over inputs that were not made: what decides an Exec without a shortcut is contents
// alone.
func (w *work) plannable(shortcut Key) bool {
	_, exec := w.vertex.Op().(llb.Exec)
	return !w.lacking || exec && shortcut == Key{}
}
