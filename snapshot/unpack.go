package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
)

// Unpack reads the tar of an image's layer to its end and commits it under id, unless it is there already; an error of
// tarball, also in its last Read, leaves nothing. parent is the root file
// system that the layer was made over, or nil: without it directories that the tar does not name itself are marked
// Implied. What the tar writes through its own symbolic links stays inside the layer (image-spec, layer.md).
func (s *Store) Unpack(ctx context.Context, id string, tarball io.Reader, parent layer.Tree) (Committed, error) {
	if m, err := s.Manifest(id); err == nil {
		return Committed{ID: id, Summary: m.Summary}, nil
	}
	p, err := s.New()
	if err != nil {
		return Committed{}, err
	}
	defer p.Close()
	b := s.NewBuilder(parent, p, time.Unix(0, 0))
	defer b.Close()
	if err := unpackLayer(ctx, b, tarball, s.Limit); err != nil {
		return Committed{}, fmt.Errorf("unpack the layer: %w", err)
	}
	if err := b.Finish(); err != nil {
		return Committed{}, fmt.Errorf("unpack the layer: %w", err)
	}
	return p.Commit(b, id)
}

// Index reads the tar of an image's layer to its end and keeps its entries alone: a Tree can tell what is in the layer, but
// not open its files. It does nothing for a layer that is there, or that was indexed before. What Unpack says of errors
// holds here as well.
func (s *Store) Index(ctx context.Context, id string, tarball io.Reader) error {
	if _, err := s.entries(id); err == nil {
		return nil
	}
	b := s.NewBuilder(nil, nil, time.Unix(0, 0))
	defer b.Close()
	if err := unpackLayer(ctx, b, tarball, s.Limit); err != nil {
		return fmt.Errorf("read the layer: %w", err)
	}
	dir, err := os.MkdirTemp(s.tmp, "index-")
	if err != nil {
		return fmt.Errorf("keep the layer's entries: %w", err)
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "manifest")
	w, err := layer.NewWriter(name)
	if err != nil {
		return fmt.Errorf("keep the layer's entries: %w", err)
	}
	if err := b.Entries(until(ctx, w.Add)); err != nil {
		w.Abort()
		return fmt.Errorf("keep the layer's entries: %w", err)
	}
	if _, err := w.Close(time.Now()); err != nil {
		return fmt.Errorf("keep the layer's entries: %w", err)
	}
	if err := os.Rename(name, s.indexPath(id)); err != nil {
		return fmt.Errorf("keep the layer's entries: %w", err)
	}
	return nil
}

// unpackLayer puts what a layer's tar holds into b and reads it to its end: what follows the end of the archive is part of
// what tarball vouches for in its last Read.
func unpackLayer(ctx context.Context, b *Builder, tarball io.Reader, limit layer.Limit) error {
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
	var missing *PathError
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
	if b.disk != nil {
		var err error
		if body, err = b.parent.Open(&file); err != nil {
			return err
		}
		defer body.Close()
	}
	file.Path = to
	return b.Put(file, body)
}
