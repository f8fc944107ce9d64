package solver

import (
	"io"
	"sync"

	"github.com/kilnbuild/kiln/events"
)

// tee emits a step's output and writes it into the step's log, both streams in the order of the writes.
type tee struct {
	task *events.Task

	mu  sync.Mutex
	log io.Writer
	n   int64
}

func (t *tee) stream(number int) io.Writer { return teeStream{t, number} }

func (t *tee) size() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

type teeStream struct {
	tee    *tee
	number int
}

func (s teeStream) Write(p []byte) (int, error) {
	t := s.tee
	t.mu.Lock()
	defer t.mu.Unlock()
	t.task.Log(s.number, p)
	n, err := t.log.Write(p)
	t.n += int64(n)
	return n, err
}
