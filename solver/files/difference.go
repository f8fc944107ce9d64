package files

import (
	"context"
	"io"
	"slices"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// Difference puts what is different between two trees into a builder over the lower one, but for what differs only in its times.
func Difference(ctx context.Context, lower, upper layer.Tree, b *compose.Builder) error {
	d := &differ{ctx: ctx, lower: lower, upper: upper, b: b, links: map[string]string{}}
	return d.dir("")
}

// differ is the work of Difference.
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
