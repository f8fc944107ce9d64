package share

import (
	"context"
	"errors"
	"sync"
	"testing"
)

var errEnded = errors.New("it has ended")

// A user who takes what there is leaves places to others, and those who wait get those that become free, in their order.
func TestPlaces(t *testing.T) {
	p := New(8)
	var leave []func()
	take := func(user string, want int) {
		t.Helper()
		for range want {
			l, err := p.Take(t.Context(), user)
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, l)
		}
		ended, cancel := context.WithCancelCause(t.Context())
		cancel(errEnded)
		if _, err := p.Take(ended, user); !errors.Is(err, errEnded) {
			t.Errorf("%s has more than %d places: %v", user, want, err)
		}
	}
	take("a", 4)
	take("b", 2)
	take("c", 1)
	if p.free != 1 {
		t.Errorf("%d places are free", p.free)
	}
	var waiting sync.WaitGroup
	for _, user := range []string{"a", "b", "a"} {
		waiting.Go(func() {
			l, err := p.Take(t.Context(), user)
			if err != nil {
				t.Error(err)
				return
			}
			l()
		})
	}
	for _, l := range leave {
		l()
	}
	waiting.Wait()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 { // those that are given a place as they give up give it back
		if l, err := p.Take(ended, "a"); err == nil {
			l()
		}
	}
	if p.free != 8 || len(p.taken) > 0 || len(p.waiting) > 0 {
		t.Errorf("%d places are free, %v have places, and %d wait", p.free, p.taken, len(p.waiting))
	}
}
