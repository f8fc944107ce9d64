package bucket

import (
	"context"
	"io"

	"github.com/kilnbuild/kiln/internal/fetch"
)

// Reader reads an object, and goes on where it was when a connection breaks.
type Reader struct {
	ctx    context.Context
	open   func(ctx context.Context, offset int64) (io.ReadCloser, error)
	offset int64
	since  int // bytes since the last progress that counted
	tries  fetch.Tries
	body   io.ReadCloser
}

// NewReader returns a reader of what open returns from an offset on. Nothing is opened before Begin or the first Read.
func NewReader(ctx context.Context, open func(ctx context.Context, offset int64) (io.ReadCloser, error)) *Reader {
	return &Reader{ctx: ctx, open: open, tries: fetch.Tries{Patience: fetch.Usual()}}
}

// Begin opens the object, and tries again while that may help.
func (r *Reader) Begin() error {
	for r.body == nil {
		body, err := r.open(r.ctx, r.offset)
		if err == nil {
			r.body = body
		} else if err := r.tries.Again(r.ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	for {
		if err := r.Begin(); err != nil {
			return 0, err
		}
		n, err := r.body.Read(p)
		r.offset += int64(n)
		if r.since += n; r.since >= fetch.MinProgress {
			r.since = 0
			r.tries.Progress()
		}
		if n > 0 || err == nil {
			return n, nil // the error comes again
		}
		if err == io.EOF {
			return 0, err
		}
		r.body.Close()
		r.body = nil
		if err := r.tries.Again(r.ctx, err); err != nil {
			return 0, err
		}
	}
}

// Close ends the reading.
func (r *Reader) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}
