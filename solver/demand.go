package solver

import "github.com/kilnbuild/kiln/llb"

// demand works out what is needed of each output, from the roots down.
func (s *solve) demand(roots []llb.Output) {
	for _, o := range roots {
		s.nodes[o.Vertex.Digest()].demand[o.Index].add(s.opts.Demand)
	}
	for i := len(s.order) - 1; i >= 0; i-- {
		n := s.order[i]
		op := n.vertex.Op()
		of := func(input int) *Demand { return &n.inputs[input].demand[n.vertex.Inputs()[input].Index] }
		for input, use := range s.opts.Planner.Uses(op, len(n.inputs)) {
			switch use {
			case UseFiles:
				of(input).Files = true
			case UseLayers:
				of(input).add(n.demand[0])
			}
		}
		// What is needed of a root is needed of the layers below.
		for output, base := range llb.Bases(op) {
			if base != llb.NoBase {
				of(base).add(n.demand[output])
			}
		}
	}
}

// expected returns what is probably needed of an output: its files, if a step reads them that has not ended and is not known to have run
// before.
func (s *solve) expected(n *node, output int) Demand {
	d := n.demand[output]
	if d.Files {
		d.Files = s.opts.Demand.Files || s.filesRead(n)
	}
	return d
}

// filesRead reports whether a step that reads files of n, or of what lies on n, has neither ended nor run before.
func (s *solve) filesRead(n *node) bool {
	seen := map[*node]bool{}
	stack := []*node{n}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, user := range n.users {
			if seen[user] {
				continue
			}
			seen[user] = true
			uses := s.opts.Planner.Uses(user.vertex.Op(), len(user.inputs))
			passes := false
			for i, in := range user.inputs {
				if in != n {
					continue
				}
				if uses[i] == UseFiles && !user.ended.Load() && !s.ranBefore(user) {
					return true
				}
				passes = passes || uses[i] == UseLayers
				for _, base := range llb.Bases(user.vertex.Op()) {
					passes = passes || base == i
				}
			}
			if passes {
				stack = append(stack, user)
			}
		}
	}
	return false
}

func (s *solve) ranBefore(n *node) bool {
	h, ok := s.opts.Cache.(LastBuild)
	if !ok || n.vertex.Meta().NoCache {
		return false
	}
	r, same := h.Last(n.vertex)
	return r != nil && same
}
