// Package ctxtest has a context for tests of what must end while it works through a large input: it ends after it was looked at so many
// times. So a test needs no input that takes long, and no clock.
package ctxtest

import (
	"context"
	"errors"
	"sync/atomic"
)

// ErrEnded is the cause of a Context's end.
var ErrEnded = errors.New("the test has ended the context")

// Context counts the calls of its Err. Contexts that are made from it end with it, and do not count.
type Context struct {
	context.Context
	cancel context.CancelCauseFunc
	left   atomic.Int64
}

// EndAfter returns a context that ends when its Err is called for the n-th time.
func EndAfter(n int) *Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &Context{Context: ctx, cancel: cancel}
	c.left.Store(int64(n))
	return c
}

// Err implements context.Context.
func (c *Context) Err() error {
	if c.left.Add(-1) == 0 {
		c.cancel(ErrEnded)
	}
	return c.Context.Err()
}
