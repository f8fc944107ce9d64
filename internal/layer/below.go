package layer

import (
	"context"
	"io"
)

// below is a directory of a tree, as a tree of its own.
type below struct {
	Tree
	dir string // not ""
}

// Below returns the directory at a physical path of a tree as a tree of its own. Symbolic links in it that lead out of it lead to its top.
func Below(tree Tree, dir string) Tree {
	if dir == "" {
		return tree
	}
	return &below{tree, dir}
}

func (b *below) outer(path string) string {
	if path == "" {
		return b.dir
	}
	return b.dir + "/" + path
}

// inner makes the path of an entry one of the directory.
func (b *below) inner(e *Entry) {
	if e.Path == b.dir {
		e.Path = ""
	} else if len(e.Path) > len(b.dir) {
		e.Path = e.Path[len(b.dir)+1:]
	}
}

// Lookup implements Tree.
func (b *below) Lookup(path string) (Entry, bool, error) {
	e, ok, err := b.Tree.Lookup(b.outer(path))
	b.inner(&e)
	return e, ok, err
}

// List implements Tree.
func (b *below) List(dir string) ([]Entry, error) {
	list, err := b.Tree.List(b.outer(dir))
	for i := range list {
		b.inner(&list[i])
	}
	return list, err
}

// Sum implements Tree.
func (b *below) Sum(ctx context.Context, entries []*Entry) error {
	for _, e := range entries {
		e.Path = b.outer(e.Path)
	}
	err := b.Tree.Sum(ctx, entries)
	for _, e := range entries {
		b.inner(e)
	}
	return err
}

// Open implements Tree.
func (b *below) Open(e *Entry) (io.ReadCloser, error) {
	outer := *e
	outer.Path = b.outer(e.Path)
	return b.Tree.Open(&outer)
}
