package compose

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
)

// Unpack puts the entries of the tar of an image's layer into the builder. It reads tarball to its end, since the error of its last Read
// says whether all that came before was right. What the tar writes through its own symbolic links stays inside the layer (image-spec,
// layer.md).
func (b *Builder) Unpack(ctx context.Context, tarball io.Reader, limit layer.Limit) error {
	r := layer.NewReader(ctxio.Reader(ctx, tarball), limit)
	b.Most(limit.OrDefault().Entries)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e, err := r.Next()
		if err == io.EOF {
			return r.Rest()
		}
		if err != nil {
			return err
		}
		if err := unpackEntry(b, e, r); err != nil {
			return err
		}
	}
}

func unpackEntry(b *Builder, e layer.Entry, body io.Reader) error {
	dir, _, err := b.Resolve(layer.Parent(e.Path), true)
	if err != nil {
		return err
	}
	base := e.Name()
	if base == "" {
		return b.Put(e, nil)
	}
	physical := base
	if dir != "" {
		physical = dir + "/" + base
	}
	if hidden, ok := strings.CutPrefix(base, layer.WhiteoutPrefix); ok {
		switch {
		case base == layer.OpaqueName:
			return b.Opaque(dir)
		case strings.HasPrefix(hidden, layer.WhiteoutPrefix):
			return nil // .wh..wh.plnk and the like: AUFS's own bookkeeping
		case hidden == "" || hidden == "." || hidden == "..":
			return &layer.HeaderError{Name: e.Path, Msg: "is no whiteout of any name"}
		}
		if dir != "" {
			hidden = dir + "/" + hidden
		}
		return b.Whiteout(hidden)
	}
	e.Path = physical
	if e.Type == layer.Hardlink {
		return unpackLink(b, e)
	}
	return b.Put(e, body)
}

// unpackLink makes a hard link to a file of the same layer, or, as other unpackers do, to one of a lower layer: then the
// file itself is copied.
func unpackLink(b *Builder, e layer.Entry) error {
	dir, _, err := b.Resolve(layer.Parent(e.Link), true)
	if err != nil {
		return err
	}
	target := e.Link[strings.LastIndexByte(e.Link, '/')+1:]
	if dir != "" {
		target = dir + "/" + target
	}
	err = b.Link(e, target)
	var missing *layer.PathError
	if b.parent == nil || !errors.As(err, &missing) {
		return err
	}
	lower, ok, lookup := b.Lookup(target)
	if lookup != nil || !ok || lower.Type != layer.File {
		return err
	}
	return b.CopyUp(lower, e.Path)
}

// CopyUp puts a copy of a lower layer's file at a physical path.
func (b *Builder) CopyUp(file layer.Entry, to string) error {
	var body io.ReadCloser
	if b.to != nil {
		var err error
		if body, err = b.parent.Open(&file); err != nil {
			return err
		}
		defer body.Close()
	}
	file.Path = to
	return b.Put(file, body)
}
