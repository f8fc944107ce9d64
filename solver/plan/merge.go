package plan

import (
	"context"
	"slices"

	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/work"
)

// merge stacks the layers of the other inputs on the first. This needs no work, unless a layer hides lower ones with an opaque
// directory.
func (p *Planner) merge(ctx context.Context, in []solver.Ref) (solver.Plan, error) {
	var moved []work.Layer
	asIs := true
	for _, r := range in[1:] {
		layers, err := p.moved(ctx, r, 0)
		if err != nil {
			return solver.Plan{}, err
		}
		for _, l := range layers {
			asIs = asIs && l.AsIs
		}
		moved = append(moved, layers...)
	}
	return stacked(llb.Merge{}, in[0], moved, asIs), nil
}

// moved returns the layers of a root above the lowest n, to be stacked on another root.
func (p *Planner) moved(ctx context.Context, r solver.Ref, n int) ([]work.Layer, error) {
	hides, err := p.Layers.Hides(ctx, r)
	if err != nil {
		return nil, err
	}
	var out []work.Layer
	for i, l := range r.Layers() {
		asIs := true
		if l.Content != (solver.Content{}) {
			asIs, hides = !hides[0], hides[1:]
		}
		if i >= n {
			out = append(out, work.Layer{Root: r.Below(i + 1), AsIs: asIs})
		}
	}
	return out, nil
}

// stacked plans an op that stacks layers on a root.
func stacked(op llb.Op, root solver.Ref, layers []work.Layer, asIs bool) solver.Plan {
	if asIs {
		for _, l := range layers {
			all := l.Root.Layers()
			root = root.Push(all[len(all)-1])
		}
		return done(root)
	}
	// In its new place an opaque directory would hide everything below it, but it must only hide what was below it originally.
	inputs := common(op)
	for _, l := range layers {
		inputs = append(inputs, contentInput("over", l.Root.Below(l.Root.Depth()-1).Content()), contentInput("layer", l.Root.Content()))
	}
	return solver.Plan{Inputs: inputs, Work: work.Explicit{Layers: layers}}
}

// diff uses the layers of the second input above those of the first if possible, and otherwise plans a layer with the
// differences.
func (p *Planner) diff(ctx context.Context, in []solver.Ref) (solver.Plan, error) {
	lower, upper := in[0], in[1]
	below, above := lower.Layers(), upper.Layers()
	if len(below) <= len(above) && slices.Equal(below, above[:len(below)]) {
		layers, err := p.moved(ctx, upper, len(below))
		if err != nil {
			return solver.Plan{}, err
		}
		asIs := !slices.ContainsFunc(layers, func(l work.Layer) bool { return !l.AsIs })
		return stacked(llb.Diff{}, solver.Ref{}, layers, asIs), nil
	}
	inputs := append(common(llb.Diff{}), contentInput("lower", lower.Content()), contentInput("upper", upper.Content()))
	return solver.Plan{Inputs: inputs, Work: work.Diff{Lower: lower, Upper: upper}}, nil
}
