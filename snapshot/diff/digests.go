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

// digesting passes entries on in the order in which they come, while the files among them are read for their size and digest, as many at
// once as there are processors. It is for one goroutine.
type digesting struct {
	ctx     context.Context
	buffers chan []byte // one for each file that may be read at once
	begun   map[*layer.Entry]chan error
	queue   chan digested
	done    chan error
	failed  atomic.Bool
}

// digested is an entry that is passed on when ready says so; nil for at once.
type digested struct {
	entry *layer.Entry
	ready chan error
}

// digestQueue is how many entries may wait for a large file.
const digestQueue = 1024

var errNotWanted = errors.New("BUG: nobody wants the entries, and nobody says why")

// newDigesting returns a digesting that gives entries to f, on another goroutine. close must be called.
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

// begin begins to read the file of an entry, which it closes. The entry's size and digest are known when it is passed on.
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

// wait waits until the size and digest of an entry are known that was not passed on yet.
func (d *digesting) wait(e *layer.Entry) error {
	ready := d.begun[e]
	if ready == nil {
		return nil
	}
	err := <-ready
	ready <- err // for whoever asks next
	return err
}

// drop forgets an entry that was waited for, and is not passed on.
func (d *digesting) drop(e *layer.Entry) { delete(d.begun, e) }

// emit passes the next entry on. An error of an earlier one is that of close.
func (d *digesting) emit(e *layer.Entry) error {
	if d.failed.Load() {
		return errNotWanted
	}
	if err := ctxio.Ended(d.ctx); err != nil {
		return err
	}
	d.queue <- digested{e, d.begun[e]}
	delete(d.begun, e)
	return nil
}

// close returns the first error, once nothing is read any more.
func (d *digesting) close() error {
	close(d.queue)
	err := <-d.done
	for _, ready := range d.begun { // of entries that were not passed on
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
