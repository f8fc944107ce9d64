package exporter

import (
	"context"
	"errors"
	"io"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
)

// entries calls f for every entry of a tree, parents first, with hard links as Hardlink.
func entries(ctx context.Context, tree layer.Tree, f func(e *layer.Entry) error) error {
	links := map[string]string{}
	var walk func(dir string) error
	walk = func(dir string) error {
		list, err := tree.List(dir)
		if err != nil {
			return err
		}
		for i := range list {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			e := &list[i]
			e.Opaque, e.Implied = false, false
			if first, ok := links[e.LinkID]; ok && e.LinkID != "" {
				e.Type, e.Link, e.Size = layer.Hardlink, first, 0
			} else if e.LinkID != "" {
				links[e.LinkID] = e.Path
			}
			if err := f(e); err != nil {
				return err
			}
			if e.Type == layer.Dir {
				if err := walk(e.Path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return walk("")
}

// WriteTar writes a root file system as one tar.
func WriteTar(ctx context.Context, w io.Writer, tree layer.Tree) error {
	var walkErr error
	seq := func(yield func(*layer.Entry, layer.Body) bool) {
		stop := errors.New("stopped")
		walkErr = entries(ctx, tree, func(e *layer.Entry) error {
			if !yield(e, func(w io.Writer) error { return copyFile(w, tree, e) }) {
				return stop
			}
			return nil
		})
		if errors.Is(walkErr, stop) {
			walkErr = nil
		}
	}
	err := layer.WriteTar(ctxio.Writer(ctx, w), seq)
	return errors.Join(walkErr, err)
}

func copyFile(w io.Writer, tree layer.Tree, e *layer.Entry) error {
	f, err := tree.Open(e)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{f}, make([]byte, min(256<<10, e.Size+1)))
	return err
}
