// Package ctxio ends reading and writing with a context, so that copying or hashing any number of bytes can be cancelled.
package ctxio

import (
	"context"
	"io"
)

// Ended returns the cause of the end of ctx; nil before that.
func Ended(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// Reader returns r until ctx ends, and then its cause.
func Reader(ctx context.Context, r io.Reader) io.Reader { return reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := Ended(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// ReadCloser is like Reader; Close does not depend on ctx.
func ReadCloser(ctx context.Context, r io.ReadCloser) io.ReadCloser {
	return readCloser{reader{ctx, r}, r}
}

type readCloser struct {
	reader
	io.Closer
}

// Writer returns w until ctx ends, and then fails with its cause.
func Writer(ctx context.Context, w io.Writer) io.Writer { return writer{ctx, w} }

type writer struct {
	ctx context.Context
	w   io.Writer
}

func (w writer) Write(p []byte) (int, error) {
	if err := Ended(w.ctx); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}
