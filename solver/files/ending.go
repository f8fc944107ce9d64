package files

import (
	"context"
	"io"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
)

// endingTree is a tree whose methods fail once its context has ended. So everything that traverses the tree ends with the
// context.
type endingTree struct {
	layer.Tree
	ctx context.Context
}

func (t endingTree) Lookup(path string) (layer.Entry, bool, error) {
	if err := ctxio.Ended(t.ctx); err != nil {
		return layer.Entry{}, false, err
	}
	return t.Tree.Lookup(path)
}

func (t endingTree) List(path string) ([]layer.Entry, error) {
	if err := ctxio.Ended(t.ctx); err != nil {
		return nil, err
	}
	return t.Tree.List(path)
}

func (t endingTree) Open(e *layer.Entry) (io.ReadCloser, error) {
	if err := ctxio.Ended(t.ctx); err != nil {
		return nil, err
	}
	f, err := t.Tree.Open(e)
	if err != nil {
		return nil, err
	}
	return ctxio.ReadCloser(t.ctx, f), nil
}

// Until returns a tree that fails once ctx has ended.
func Until(ctx context.Context, t layer.Tree) layer.Tree { return endingTree{t, ctx} }

// Ignored forwards to the tree of a build context.
func (t endingTree) Ignored(path string) (ignore.Reason, bool) {
	if d, ok := t.Tree.(ignoring); ok {
		return d.Ignored(path)
	}
	return ignore.Reason{}, false
}

// ListAll forwards to the tree of a build context.
func (t endingTree) ListAll(path string) ([]layer.Entry, error) {
	if d, ok := t.Tree.(ignoring); ok && t.ctx.Err() == nil {
		return d.ListAll(path)
	}
	return t.List(path)
}

// ignoring is a tree from which patterns exclude files. ListAll is List with those.
type ignoring interface {
	Ignored(path string) (ignore.Reason, bool)
	ListAll(path string) ([]layer.Entry, error)
}
