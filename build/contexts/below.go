package contexts

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// below is a directory of a tree, as a tree of its own. Symbolic links in it that lead out of it lead to its top.
type below struct {
	layer.Tree
	dir string // not ""
}

// subdir returns the directory of a context that counts. That there is none is an *input.Error.
func subdir(tree layer.Tree, dir string) (layer.Tree, error) {
	path, e, err := compose.Resolve(tree.Lookup, dir, true)
	if err == nil && (e == nil || e.Type != layer.Dir) {
		err = errors.New("there is no such directory")
	}
	if err != nil {
		return nil, &input.Error{Err: fmt.Errorf("use the directory %s of the context: %w", layer.Clip(dir), err)}
	}
	if path == "" {
		return tree, nil
	}
	return &below{tree, path}, nil
}

func (b *below) outer(path string) string {
	if path == "" {
		return b.dir
	}
	return b.dir + "/" + path
}

// inner makes the path of an entry one of the directory.
func (b *below) inner(e *layer.Entry) {
	if e.Path == b.dir {
		e.Path = ""
	} else if len(e.Path) > len(b.dir) {
		e.Path = e.Path[len(b.dir)+1:]
	}
}

// Lookup implements layer.Tree.
func (b *below) Lookup(path string) (layer.Entry, bool, error) {
	e, ok, err := b.Tree.Lookup(b.outer(path))
	b.inner(&e)
	return e, ok, err
}

// List implements layer.Tree.
func (b *below) List(dir string) ([]layer.Entry, error) {
	list, err := b.Tree.List(b.outer(dir))
	for i := range list {
		b.inner(&list[i])
	}
	return list, err
}

// Sum implements layer.Tree.
func (b *below) Sum(ctx context.Context, entries []*layer.Entry) error {
	for _, e := range entries {
		e.Path = b.outer(e.Path)
	}
	err := b.Tree.Sum(ctx, entries)
	for _, e := range entries {
		b.inner(e)
	}
	return err
}

// Open implements layer.Tree.
func (b *below) Open(e *layer.Entry) (io.ReadCloser, error) {
	outer := *e
	outer.Path = b.outer(e.Path)
	return b.Tree.Open(&outer)
}
