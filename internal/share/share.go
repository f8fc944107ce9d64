// Package share divides what is scarce among users who do not know of each other.
package share

import (
	"context"
	"slices"
	"sync"
)

// Places are taken by whoever does something, and waited for. No user can take all of them: see Fits. It is safe for concurrent use.
type Places struct {
	mu      sync.Mutex
	free    int
	taken   map[string]int // by user
	waiting []*waiting     // in the order in which they came
}

// waiting is one that waits for a place.
type waiting struct {
	user  string
	given chan struct{} // closed when it has one
}

// New returns n places.
func New(n int) *Places { return &Places{free: n, taken: map[string]int{}} }

// Fits reports whether a user who has some of a number of things may have another one while so many are free: as long as there are more of
// those. So whoever is alone gets half of them, whoever comes next half of the rest, and something is left for the one after that.
func Fits(has, free int) bool { return has < free }

// Take waits for a place, which the caller gives back with leave. The error is the cause of the end of ctx.
func (p *Places) Take(ctx context.Context, user string) (leave func(), err error) {
	w := &waiting{user: user, given: make(chan struct{})}
	p.mu.Lock()
	p.waiting = append(p.waiting, w)
	p.give()
	p.mu.Unlock()
	leave = func() { p.back(user) }
	select {
	case <-w.given:
		return leave, nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	i := slices.Index(p.waiting, w)
	if i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
	p.mu.Unlock()
	if i < 0 { // it has been given one meanwhile
		leave()
	}
	return nil, context.Cause(ctx)
}

// back takes a place back.
func (p *Places) back(user string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free++
	if p.taken[user]--; p.taken[user] == 0 {
		delete(p.taken, user)
	}
	p.give()
}

// give gives places to those that wait and may have one, in their order. The lock is held.
func (p *Places) give() {
	p.waiting = slices.DeleteFunc(p.waiting, func(w *waiting) bool {
		if !Fits(p.taken[w.user], p.free) {
			return false
		}
		p.free--
		p.taken[w.user]++
		close(w.given)
		return true
	})
}
