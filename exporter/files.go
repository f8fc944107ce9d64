package exporter

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
)

// entries calls f for every entry of a tree, parents first. Further names of a file become Hardlinks, and all times become epoch
// unless it is nil.
func entries(ctx context.Context, tree layer.Tree, epoch *time.Time, f func(e *layer.Entry) error) error {
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
			if epoch != nil {
				e.ModTime = *epoch
			}
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

// Root is a root file system in a tar.
type Root struct {
	// Dir is the directory in the tar that contains the files, or "" for the top.
	Dir  string
	Tree layer.Tree
}

// WriteTar writes root file systems as one tar. All times become epoch unless it is nil. The directory Dir of a Root has that
// time too, and otherwise the time 0, as in BuildKit.
func WriteTar(ctx context.Context, w io.Writer, epoch *time.Time, roots ...Root) error {
	stop := errors.New("stopped")
	var walkErr error
	seq := func(yield func(*layer.Entry, layer.Body) bool) {
		for _, r := range roots {
			if walkErr = r.entries(ctx, epoch, stop, yield); walkErr != nil {
				return
			}
		}
	}
	err := layer.WriteTar(ctxio.Writer(ctx, w), seq)
	if errors.Is(walkErr, stop) {
		walkErr = nil
	}
	return errors.Join(walkErr, err)
}

// entries passes the entries of a root, with their paths in the tar, to yield. It returns stop when yield returns false.
func (r Root) entries(ctx context.Context, epoch *time.Time, stop error, yield func(*layer.Entry, layer.Body) bool) error {
	if r.Dir != "" {
		top := layer.Entry{Path: r.Dir, Type: layer.Dir, Mode: 0o755, ModTime: time.Unix(0, 0)}
		if epoch != nil {
			top.ModTime = *epoch
		}
		if !yield(&top, nil) {
			return stop
		}
	}
	return entries(ctx, r.Tree, epoch, func(e *layer.Entry) error {
		body := func(w io.Writer) error { return copyFile(w, r.Tree, e) }
		if r.Dir != "" {
			in := *e
			in.Path = r.Dir + "/" + e.Path
			if e.Type == layer.Hardlink {
				in.Link = r.Dir + "/" + e.Link
			}
			if !yield(&in, body) {
				return stop
			}
			return nil
		}
		if !yield(e, body) {
			return stop
		}
		return nil
	})
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
