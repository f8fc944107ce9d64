package diff

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"runtime"
	"sync/atomic"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
)

// digesting passes entries on in order, while it computes the size and digest of the files among them, as many at once as there
// are processors. It is not safe for concurrent use.
type digesting struct {
	ctx     context.Context
	buffers chan []byte // one for each file read concurrently
	begun   map[*layer.Entry]chan error
	queue   chan digested
	done    chan error
	failed  atomic.Bool
}

// digested is an entry that is passed on when ready receives a value, or at once if ready is nil.
type digested struct {
	entry *layer.Entry
	ready chan error
}

// digestQueue is the maximum number of entries that wait for a large file.
const digestQueue = 1024

var errStopped = errors.New("BUG: entry consumer stopped without an error")

// newDigesting returns a digesting that passes entries to f, on another goroutine. The caller must call close.
func newDigesting(ctx context.Context, f func(*layer.Entry) error) *digesting {
	d := &digesting{
		ctx: ctx, buffers: make(chan []byte, runtime.GOMAXPROCS(0)), begun: map[*layer.Entry]chan error{},
		queue: make(chan digested, digestQueue), done: make(chan error, 1),
	}
	for range cap(d.buffers) {
		d.buffers <- nil
	}
	go func() {
		var err error
		for q := range d.queue {
			if q.ready != nil {
				if failed := <-q.ready; err == nil {
					err = failed
				}
			}
			if err == nil {
				err = f(q.entry)
			}
			if err != nil {
				d.failed.Store(true)
			}
		}
		d.done <- err
	}()
	return d
}

// begin starts to read the file of an entry, and closes it at the end. The entry's size and digest are set before it is passed
// on.
func (d *digesting) begin(f *os.File, e *layer.Entry) {
	ready := make(chan error, 1)
	d.begun[e] = ready
	buf := <-d.buffers
	if buf == nil {
		buf = make([]byte, 256<<10)
	}
	go func() {
		err := d.sum(f, e, buf)
		f.Close()
		d.buffers <- buf
		ready <- err
	}()
}

// wait waits until the size and digest of an entry that was not passed on yet are known.
func (d *digesting) wait(e *layer.Entry) error {
	ready := d.begun[e]
	if ready == nil {
		return nil
	}
	err := <-ready
	ready <- err // for the next receiver
	return err
}

// drop discards an entry that was waited for and will not be passed on.
func (d *digesting) drop(e *layer.Entry) { delete(d.begun, e) }

// emit passes the next entry on. An earlier error is returned by close.
func (d *digesting) emit(e *layer.Entry) error {
	if d.failed.Load() {
		return errStopped
	}
	if err := ctxio.Ended(d.ctx); err != nil {
		return err
	}
	d.queue <- digested{e, d.begun[e]}
	delete(d.begun, e)
	return nil
}

// close waits until all files are read, and returns the first error.
func (d *digesting) close() error {
	close(d.queue)
	err := <-d.done
	for _, ready := range d.begun { // entries that were not passed on
		<-ready
	}
	return err
}

func (d *digesting) sum(f *os.File, e *layer.Entry, buf []byte) error {
	h := sha256.New()
	for {
		if d.ctx.Err() != nil {
			return context.Cause(d.ctx)
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		e.Size += int64(n)
		if err == io.EOF {
			h.Sum(e.Digest[:0])
			return nil
		}
		if err != nil {
			return err
		}
	}
}
