package execute

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/solver"
)

// base is an image that steps stand on. What is fetched of it is reported at its own vertex, which ends when the image can be used; a step
// that needs it waits meanwhile.
type base struct {
	task *events.Task
	// needed ends the time in which nobody needs the image, and release the hold that goes with it. Both do nothing the second time.
	needed  func()
	release func(err error)
	// fetched says that some of it was needed.
	fetched sync.Once
}

// base returns the image whose vertex ctx has. It is open until its layers are fetched, if they are not there, or the job ends.
func (x *Job) base(ctx context.Context, layers []ImageLayer) *base {
	b := &base{task: events.From(ctx), needed: func() {}, release: func(error) {}}
	here := func(l ImageLayer) bool {
		_, err := x.Snapshots.Manifest(ctx, layer.ID(l.DiffID.Encoded()))
		return err == nil
	}
	if !slices.ContainsFunc(layers, func(l ImageLayer) bool { return !here(l) }) {
		b.task.Emit(events.Cached{})
		return b
	}
	b.release = b.task.Hold()
	b.needed = b.task.Wait(nil)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.bases = append(x.bases, b)
	return b
}

// unneeded ends the vertex of an image of which nothing was fetched.
func (b *base) unneeded() {
	b.fetched.Do(func() { b.task.Emit(events.Cached{}) })
	b.needed()
	b.release(nil)
}

// fetching reports that the layers with these indexes are being fetched, and that the vertex of ctx waits for them. id returns the ID of a
// layer. end must be called with the result.
func (x *Job) fetching(ctx context.Context, missing []int, id func(i int) string) (end func(err error)) {
	type holding struct {
		source
		release func(error)
		resume  func()
	}
	var held []holding
	for _, i := range missing {
		x.mu.Lock()
		src, ok := x.sources[id(i)]
		x.mu.Unlock()
		if !ok {
			continue // the fetch says so
		}
		if !slices.ContainsFunc(held, func(h holding) bool { return h.base == src.base }) {
			held = append(held, holding{src, src.base.task.Hold(), events.From(ctx).Wait(src.base.task)})
			src.base.fetched.Do(func() {})
			src.base.needed()
		}
		src.base.task.Emit(events.Transfer{Name: src.layer.Blob.Digest.String(), Phase: events.Queued, Total: src.layer.Blob.Size})
	}
	return func(err error) {
		for _, h := range held {
			failed := err
			if e, ok := errors.AsType[*solver.ImageError](err); ok && e.Image != h.image {
				failed = context.Canceled // another one's failure ended it
			}
			h.release(failed)
			h.base.release(failed)
			h.resume()
		}
	}
}

// arriving calls arrived when all of r has been read.
type arriving struct {
	r       io.Reader
	arrived func()
}

func (a *arriving) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if err == io.EOF && a.arrived != nil {
		a.arrived()
		a.arrived = nil
	}
	return n, err
}
