package plan

import (
	"context"
	"fmt"
	"strconv"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/files"
	"github.com/kilnbuild/kiln/solver/work"
)

// file plans COPY, ADD and WORKDIR. It computes the layer's entries without writing anything and uses their digest in the key, so
// that the key depends only on the selected files and their destinations. Names of owners are added as written, with the digests
// of the files in which they are looked up. Archives to unpack are added with their own digest, and with the entire content of
// the root that they are unpacked on.
func (p *Planner) file(ctx context.Context, op llb.File, in []solver.Ref) (solver.Plan, error) {
	c := files.Change{Op: op, Limit: p.Limit, Tmp: p.Tmp}
	for _, r := range in {
		input, err := p.input(ctx, r)
		if err != nil {
			return solver.Plan{}, err
		}
		c.Inputs = append(c.Inputs, input)
	}
	planned, err := files.Digest(ctx, c)
	if err != nil {
		return solver.Plan{}, c.Told(err)
	}
	for _, u := range planned.Unmatched {
		p.Session.Warning(u.Error() + "; nothing is copied")
	}
	inputs := append(common(op), contentInput("files", solver.Content(planned.Content)))
	inputs = append(inputs, epochs(op)...)
	w := work.File{Op: op, In: in, Archives: planned.Archives, Copied: planned.Copied, Planned: planned.Content, Identity: planned.Identity}
	unpacks := len(planned.Archives)+len(planned.Others) > 0
	if unpacks {
		inputs = append(inputs, contentInput("root", in[0].Content()))
		for _, a := range op.Actions {
			inputs = append(inputs, solver.Input{Name: "chown", Value: a.Chown()})
		}
		for _, a := range planned.Archives {
			inputs = append(inputs, solver.Input{Name: "archive", Value: a})
		}
		for _, a := range planned.Others {
			inputs = append(inputs, solver.Input{Name: "archive", Value: a})
		}
	} else if planned.Named {
		for _, name := range files.Names(op) {
			inputs = append(inputs, solver.Input{Name: "chown", Value: name})
		}
		for _, file := range []string{"/etc/passwd", "/etc/group"} {
			in, err := fileInput(c.Inputs[0], file)
			if err != nil {
				return solver.Plan{}, err
			}
			inputs = append(inputs, in)
		}
	}
	return solver.Plan{Inputs: inputs, Work: w}, nil
}

// input returns an input of a File op.
func (p *Planner) input(ctx context.Context, r solver.Ref) (files.Input, error) {
	if r.Local == "" {
		t, err := p.view(ctx, r)
		return files.Input{Tree: t}, err
	}
	t := p.Session.Local[r.Local]
	if t == nil {
		return files.Input{}, fmt.Errorf("BUG: no local directory %q", r.Local)
	}
	return files.Input{Tree: t, Local: true, Selected: p.Session.Selected[r.Local]}, nil
}

// epochs returns the key inputs for the times set by actions, or none if no action sets one.
func epochs(op llb.File) []solver.Input {
	var inputs []solver.Input
	given := false
	for _, a := range op.Actions {
		in := solver.Input{Name: "epoch"}
		if epoch := a.Epoch(); epoch != nil {
			in.Value, given = strconv.FormatInt(*epoch, 10), true
		}
		inputs = append(inputs, in)
	}
	if !given {
		return nil
	}
	return inputs
}

// fileInput returns the key input for a file of a root: its digest, or "" if it does not exist.
func fileInput(t layer.Tree, name string) (solver.Input, error) {
	in := solver.Input{Name: name}
	_, e, err := compose.Resolve(t.Lookup, name, true)
	if err == nil && e != nil {
		in.Value = fmt.Sprintf("%c %x", e.Type, e.Digest)
	}
	return in, err
}
