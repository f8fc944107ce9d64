package plan

import (
	"context"
	"fmt"
	"slices"
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
			inputs = append(inputs, solver.Input{Name: "chown", Value: a.Attributes().Chown})
		}
		for _, a := range planned.Archives {
			inputs = append(inputs, solver.Input{Name: "archive", Value: a})
		}
		for _, a := range planned.Others {
			inputs = append(inputs, solver.Input{Name: "archive", Value: a})
		}
	} else if planned.Named {
		names := files.Names(op)
		for _, name := range names {
			inputs = append(inputs, solver.Input{Name: "chown", Value: name.Chown})
		}
		for i, users := range c.Inputs {
			for _, file := range []string{"/etc/passwd", "/etc/group"} {
				if !slices.ContainsFunc(names, func(n files.Name) bool { return n.Users == i || n.Groups == i }) {
					continue
				}
				in, err := fileInput(users, file)
				if err != nil {
					return solver.Plan{}, err
				}
				if i > 0 {
					in.Name = fmt.Sprintf("%s of input %d", file, i)
				}
				inputs = append(inputs, in)
			}
		}
	}
	return solver.Plan{Inputs: inputs, Work: w}, nil
}

// input returns an input of a File op.
func (p *Planner) input(ctx context.Context, r solver.Ref) (files.Input, error) {
	if r.Local == nil {
		t, err := p.view(ctx, r)
		return files.Input{Tree: t}, err
	}
	t, err := p.Session.OpenLocal(ctx, *r.Local)
	return files.Input{Tree: t, Local: true, Selected: p.Session.SelectedOf(*r.Local)}, err
}

// epochs returns the key inputs for the times set by actions, or none if no action sets one.
func epochs(op llb.File) []solver.Input {
	var inputs []solver.Input
	given := false
	for _, a := range op.Actions {
		in := solver.Input{Name: "epoch"}
		if made := a.Attributes(); made.Epoch != nil {
			in.Value, given = strconv.FormatInt(*made.Epoch, 10), true
			if made.Nanos != 0 {
				in.Value += fmt.Sprintf(".%09d", made.Nanos)
			}
			if a.Copy != nil && a.Copy.Dated {
				in.Value += " for all"
			}
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
