package fetch

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Tries counts how often something was tried. Its Patience is set before it is used.
type Tries struct {
	Patience Patience

	failed, stalls int
}

// Progress begins the count again.
func (t *Tries) Progress() { t.failed, t.stalls = 0, 0 }

// Again waits as long as is due after the failure err and returns nil, or returns err if trying again is pointless, or the cause of the
// end of ctx.
func (t *Tries) Again(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t.failed++
	if errors.Is(err, ErrStalled) {
		t.stalls++
	}
	if !Transient(err) || t.failed >= MaxTries || t.stalls >= MaxStalls {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(t.pause(err)):
		return nil
	}
}

// pause returns how long to wait after a failure.
func (t *Tries) pause(err error) time.Duration {
	if s, ok := errors.AsType[*StatusError](err); ok && s.retryAfter >= 0 {
		return s.retryAfter
	}
	pause := min(t.Patience.Pause<<(t.failed-1), maxPause)
	return pause/2 + rand.N(pause/2+1) // apart, where many wait for one server
}

// Retry calls f until it succeeds or trying again is pointless.
func (p Patience) Retry(ctx context.Context, f func() error) error {
	t := Tries{Patience: p}
	for {
		err := f()
		if err == nil {
			return nil
		}
		if err := t.Again(ctx, err); err != nil {
			return err
		}
	}
}
