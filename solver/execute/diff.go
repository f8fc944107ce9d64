package execute

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/solver"
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
	d := &differ{ctx: ctx, lower: layer.NewStack(below), upper: tree, links: map[string]string{}}
	d.b = compose.New(d.lower, x.Tmp, time.Unix(0, 0), p.Writer())
	defer d.b.Close()
	if err := d.dir(""); err != nil {
		return nil, err
	}
	if err := d.b.Finish(); err != nil {
		return nil, err
	}
	c, err := p.Commit(ctx, d.b, "")
	if err != nil || c.Entries == 0 {
		return nil, err
	}
	return made(c), nil
}

// differ puts what is different between two trees into a builder over the lower one.
type differ struct {
	ctx          context.Context
	lower, upper layer.Tree
	b            *compose.Builder
	links        map[string]string // the first path of a file of upper that is in the layer, by LinkID
}

// dir compares what is in a directory of both trees.
func (d *differ) dir(dir string) error {
	if err := ctxio.Ended(d.ctx); err != nil {
		return err
	}
	was, err := d.lower.List(dir)
	if err != nil {
		return err
	}
	is, err := d.upper.List(dir)
	if err != nil {
		return err
	}
	old := map[string]*layer.Entry{}
	for i := range was {
		old[was[i].Path] = &was[i]
	}
	for i := range is {
		if err := d.entry(&is[i], old[is[i].Path]); err != nil {
			return err
		}
		delete(old, is[i].Path)
	}
	for _, gone := range was {
		if old[gone.Path] == nil {
			continue
		}
		if err := d.b.Delete(gone.Path); err != nil {
			return err
		}
	}
	return nil
}

// entry puts an entry of the upper tree into the layer if it is not as it was; was is nil where there was none.
func (d *differ) entry(e, was *layer.Entry) error {
	if was == nil || !same(e, was) {
		if err := d.put(*e); err != nil {
			return err
		}
	}
	if e.Type != layer.Dir {
		return nil
	}
	if was != nil && was.Type == layer.Dir {
		return d.dir(e.Path)
	}
	return d.all(e.Path)
}

// all puts everything in a directory of the upper tree into the layer.
func (d *differ) all(dir string) error {
	if err := ctxio.Ended(d.ctx); err != nil {
		return err
	}
	list, err := d.upper.List(dir)
	if err != nil {
		return err
	}
	for i := range list {
		if err := d.entry(&list[i], nil); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) put(e layer.Entry) error {
	id := e.LinkID
	e.LinkID, e.Opaque, e.Implied = "", false, false
	if first, ok := d.links[id]; ok && id != "" {
		return d.b.Link(e, first)
	}
	var body io.Reader
	if e.Type == layer.File {
		f, err := d.upper.Open(&e)
		if err != nil {
			return err
		}
		defer f.Close()
		body = ctxio.Reader(d.ctx, f)
	}
	if id != "" {
		d.links[id] = e.Path
	}
	return d.b.Put(e, body)
}

// same reports whether two entries are the same but for their times.
func same(a, b *layer.Entry) bool {
	return a.Type == b.Type && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Size == b.Size && a.Digest == b.Digest &&
		a.Link == b.Link && a.Major == b.Major && a.Minor == b.Minor && slices.Equal(a.Xattrs, b.Xattrs)
}
