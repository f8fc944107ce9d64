package once

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

var errGone = errors.New("gone")

// The end of one caller's context is an error for that caller alone, the first one as well.
func TestCanceledCaller(t *testing.T) {
	var g Group[string, int]
	begun, release := make(chan struct{}), make(chan struct{})
	var calls atomic.Int32
	f := func(ctx context.Context) (int, error) {
		calls.Add(1)
		close(begun)
		select {
		case <-release:
			return 7, nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	first, cancel := context.WithCancelCause(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := g.Do(first, "key", f); !errors.Is(err, errGone) {
			t.Errorf("the caller whose context ended: %v", err)
		}
	})
	<-begun
	var joined sync.WaitGroup
	for range 3 {
		joined.Go(func() {
			if v, err := g.Do(t.Context(), "key", f); v != 7 || err != nil {
				t.Errorf("another caller: %d, %v", v, err)
			}
		})
	}
	for g.callers("key") != 4 {
	}
	cancel(errGone)
	all.Wait()
	close(release)
	joined.Wait()
	if n := calls.Load(); n != 1 {
		t.Errorf("it was done %d times", n)
	}
}

func (g *Group[K, V]) callers(key K) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.calls[key]; c != nil {
		return c.callers
	}
	return 0
}

// When nobody waits any more the work ends, and who comes then does not get that end, and never overlaps with it.
func TestAbandoned(t *testing.T) {
	var g Group[int, string]
	ctx, cancel := context.WithCancel(t.Context())
	begun, slow := make(chan struct{}), make(chan struct{})
	var running atomic.Int32
	go g.Do(ctx, 1, func(own context.Context) (string, error) {
		running.Add(1)
		defer running.Add(-1)
		close(begun)
		<-own.Done()
		<-slow // it takes a while to end
		return "", context.Cause(own)
	})
	<-begun
	cancel()
	for g.callers(1) != 0 {
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		v, err := g.Do(t.Context(), 1, func(context.Context) (string, error) {
			if n := running.Load(); n != 0 {
				t.Errorf("%d others are at it", n)
			}
			return "anew", nil
		})
		if v != "anew" || err != nil {
			t.Errorf("%q, %v", v, err)
		}
	}()
	close(slow)
	<-done
}

// A panic is an error for all who wait.
func TestPanic(t *testing.T) {
	var g Group[int, int]
	_, err := g.Do(t.Context(), 1, func(context.Context) (int, error) { panic("no") })
	if p, ok := errors.AsType[*PanicError](err); !ok || p.Value != "no" || len(p.Stack) == 0 {
		t.Errorf("%v", err)
	}
}

// A Map keeps what was done, and does again what failed.
func TestMap(t *testing.T) {
	var m Map[string, int]
	calls := 0
	f := func(context.Context) (int, error) {
		if calls++; calls == 1 {
			return 0, errGone
		}
		return calls, nil
	}
	if _, err := m.Do(t.Context(), "a", f); !errors.Is(err, errGone) {
		t.Errorf("%v", err)
	}
	for range 3 {
		if v, err := m.Do(t.Context(), "a", f); v != 2 || err != nil {
			t.Errorf("%d, %v", v, err)
		}
	}
	// What is kept is there also for one whose context has ended.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if v, err := m.Do(ended, "a", f); v != 2 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
}
