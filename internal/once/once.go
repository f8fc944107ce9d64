// Package once does a thing once for all who ask for it at the same time. The end of one caller's context is an error for that caller
// alone.
package once

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

// Group does at most one thing at a time for each key. The zero value is ready to use. It is safe for concurrent use, and must not be
// copied once it is used.
type Group[K comparable, V any] struct {
	mu    sync.Mutex
	calls map[K]*call[V]
}

// call is a thing that is being done.
type call[V any] struct {
	callers int                // who wait for it
	cancel  context.CancelFunc // ends it
	done    chan struct{}      // is closed when the rest is set
	value   V
	err     error
}

// PanicError is the error of a function that panicked.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.Value, e.Stack) }

// Do calls f and returns what it returns, for all who call Do with the same key before f has returned. The context of f has the values of
// the first caller's; it ends when the contexts of all callers have ended. A caller whose context ends gets its cause at once, but for the
// last one, which waits until f has returned. Whoever comes meanwhile waits as well, and then f is called anew.
func (g *Group[K, V]) Do(ctx context.Context, key K, f func(context.Context) (V, error)) (V, error) {
	for {
		c, mine := g.join(ctx, key, f)
		select {
		case <-c.done:
			if mine {
				return c.value, c.err
			}
		case <-ctx.Done():
			if mine && g.leave(c) {
				<-c.done // nothing goes on when nobody knows of it any more
			}
			var none V
			return none, context.Cause(ctx)
		}
	}
}

// join returns the call of a key, which it begins if there is none. It is mine unless everybody has left it.
func (g *Group[K, V]) join(ctx context.Context, key K, f func(context.Context) (V, error)) (c *call[V], mine bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.calls[key]; c != nil {
		if c.callers > 0 {
			c.callers++
			return c, true
		}
		return c, false
	}
	if g.calls == nil {
		g.calls = map[K]*call[V]{}
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c = &call[V]{callers: 1, cancel: cancel, done: make(chan struct{})}
	g.calls[key] = c
	go func() {
		defer cancel()
		c.value, c.err = protect(own, f)
		g.mu.Lock()
		delete(g.calls, key)
		g.mu.Unlock()
		close(c.done)
	}()
	return c, true
}

// leave is for a caller that waits no more. It ends the call if that was the last one.
func (g *Group[K, V]) leave(c *call[V]) (last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.callers--; c.callers == 0 {
		c.cancel()
	}
	return c.callers == 0
}

// protect makes an error of a panic: it is to reach those who wait, on their goroutines.
func protect[V any](ctx context.Context, f func(context.Context) (V, error)) (value V, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &PanicError{Value: p, Stack: debug.Stack()}
		}
	}()
	return f(ctx)
}

// Map is a Group that keeps what was done without an error.
type Map[K comparable, V any] struct {
	group Group[K, V]
	mu    sync.Mutex
	kept  map[K]V
}

// Do returns what f returned for the key before without an error, or else what Group.Do returns.
func (m *Map[K, V]) Do(ctx context.Context, key K, f func(context.Context) (V, error)) (V, error) {
	if v, ok := m.get(key); ok {
		return v, nil
	}
	return m.group.Do(ctx, key, func(ctx context.Context) (V, error) {
		if v, ok := m.get(key); ok {
			return v, nil
		}
		v, err := f(ctx)
		if err == nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.kept == nil {
				m.kept = map[K]V{}
			}
			m.kept[key] = v
		}
		return v, err
	})
}

func (m *Map[K, V]) get(key K) (V, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.kept[key]
	return v, ok
}
