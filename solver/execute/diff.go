package execute

import (
	"context"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/files"
	"github.com/kilnbuild/kiln/solver/work"
)

// diff makes the layer of what is different in a root file system from another: none if nothing is.
func (x *Job) diff(ctx context.Context, w work.Diff) ([]solver.Made, error) {
	return x.difference(ctx, w.Lower, w.Upper)
}

// explicit makes layers that have whiteouts in the place of opaque directories.
func (x *Job) explicit(ctx context.Context, w work.Explicit) ([]solver.Made, error) {
	var out []solver.Made
	for _, l := range w.Layers {
		if l.AsIs {
			layers := l.Root.Layers()
			out = append(out, solver.Made{Layer: layers[len(layers)-1]})
			continue
		}
		made, err := x.difference(ctx, l.Root.Below(l.Root.Depth()-1), l.Root)
		if err != nil {
			return nil, err
		}
		out = append(out, made...)
	}
	return out, nil
}

func (x *Job) difference(ctx context.Context, lower, upper solver.Ref) ([]solver.Made, error) {
	below, err := x.View(ctx, lower)
	if err != nil {
		return nil, err
	}
	tree, err := x.Tree(ctx, upper)
	if err != nil {
		return nil, err
	}
	p, err := x.Snapshots.New()
	if err != nil {
		return nil, err
	}
	defer p.Close()
	old := layer.NewStack(below)
	b := compose.New(old, x.Tmp, time.Unix(0, 0), p.Writer())
	defer b.Close()
	if err := files.Difference(ctx, old, tree, b); err != nil {
		return nil, err
	}
	if err := b.Finish(); err != nil {
		return nil, err
	}
	c, err := p.Commit(ctx, b, "")
	if err != nil || c.Entries == 0 {
		return nil, err
	}
	return made(c), nil
}
