package received

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"

	"github.com/kilnbuild/kiln/internal/layer"
)

// Tree is what a client has sent of a directory. It implements layer.Tree.
type Tree struct{ stack *layer.Stack }

// described returns an entry without what the list says of it alone.
func described(e layer.Entry) layer.Entry {
	e.Clock = false
	return e
}

// Lookup implements layer.Tree.
func (t *Tree) Lookup(path string) (layer.Entry, bool, error) {
	e, ok, err := t.stack.Lookup(path)
	return described(e), ok, err
}

// List implements layer.Tree.
func (t *Tree) List(dir string) ([]layer.Entry, error) {
	list, err := t.stack.List(dir)
	for i := range list {
		list[i] = described(list[i])
	}
	return list, err
}

// Sum implements layer.Tree. The list has all digests.
func (t *Tree) Sum(context.Context, []*layer.Entry) error { return nil }

// Open implements layer.Tree. The reader returns io.EOF only if the bytes are those that the client has sent.
func (t *Tree) Open(e *layer.Entry) (io.ReadCloser, error) { return t.stack.Open(e) }

// stored are the files of a list. It implements layer.Files.
type stored struct{ cache *Cache }

// Open implements layer.Files.
func (s stored) Open(e *layer.Entry) (io.ReadCloser, error) {
	f, err := os.Open(s.cache.file(e.Digest))
	if err != nil {
		return nil, &layer.FileError{Op: "open", Path: e.Path, Err: err}
	}
	return &verified{File: f, sum: sha256.New(), entry: e}, nil
}

// Copy implements layer.Files.
func (s stored) Copy(w io.Writer, e *layer.Entry) error {
	f, err := s.Open(e)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// Names implements layer.Files.
func (s stored) Names(string) (int, error) { return 1, nil }

// verified is a reader of a file that ends with an error in place of io.EOF if the bytes are not those of the digest.
type verified struct {
	*os.File
	sum   hash.Hash
	entry *layer.Entry
}

// WriteTo hides that of os.File.
func (v *verified) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, struct{ io.Reader }{v}) }

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.File.Read(p)
	v.sum.Write(p[:n])
	if err == io.EOF && layer.Digest(v.sum.Sum(nil)) != v.entry.Digest {
		err = &layer.FileError{Op: "read", Path: v.entry.Path, Err: errDamaged}
	}
	return n, err
}

var errDamaged = errors.New("kiln's copy of the client's file is damaged; kiln check --repair removes it")
