package plan

import (
	"context"
	"encoding/json"
	"path"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/files"
)

// Shortcut implements solver.ShortcutPlanner. What a step reads of root file systems enters as the content of the whole of them, and what
// it copies from a context as it would be copied into an empty root.
func (p *Planner) Shortcut(ctx context.Context, op llb.Op, meta llb.Meta, in []solver.Ref) ([]solver.Input, error) {
	switch op := op.(type) {
	case llb.File:
		return p.fileShortcut(ctx, op, in)
	case llb.Exec:
		for _, m := range op.Mounts {
			if m.Input > 0 && m.Output <= 0 && path.Clean("/"+m.Source) != "/" {
				return opShortcut(op, meta.Platform, in)
			}
		}
	}
	return nil, nil
}

// opShortcut returns an op, with the contents of its inputs.
func opShortcut(op llb.Op, platform string, in []solver.Ref) ([]solver.Input, error) {
	data, err := json.Marshal(op) // plain values in a fixed order: see llb
	if err != nil {
		return nil, err
	}
	inputs := append(common(op), solver.Input{Name: "shortcut", Value: string(data)}, solver.Input{Name: "platform", Value: platform})
	for _, r := range in {
		inputs = append(inputs, contentInput("input", r.Content()))
	}
	return inputs, nil
}

func (p *Planner) fileShortcut(ctx context.Context, op llb.File, in []solver.Ref) ([]solver.Input, error) {
	inputs, err := opShortcut(op, "", in)
	if err != nil || len(in) == 1 {
		return inputs, err
	}
	c := files.Change{Op: op, Inputs: []files.Input{{Tree: layer.NewStack(nil)}}, Limit: p.Limit, Tmp: p.Tmp}
	for _, r := range in[1:] {
		if (r.Local == nil) != (in[1].Local == nil) {
			return nil, nil // no instruction has both
		}
		if r.Local == nil {
			continue
		}
		input, err := p.input(ctx, r)
		if err != nil {
			return nil, err
		}
		c.Inputs = append(c.Inputs, input)
	}
	if in[1].Local == nil {
		return inputs, nil
	}
	planned, err := files.Digest(ctx, c)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, nil // the plan says what is wrong
	}
	inputs = append(inputs, contentInput("files", solver.Content(planned.Content)))
	for _, a := range append(planned.Archives, planned.Others...) {
		inputs = append(inputs, solver.Input{Name: "archive", Value: a})
	}
	return inputs, nil
}
