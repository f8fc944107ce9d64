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

// What is fetched of an image is reported at its own vertex, which ends when the image can be used; a step that needs it waits meanwhile.

// image returns the vertex of ctx, which is that of an image with these layers. If they are not there it is open until they are fetched, or
// the job ends.
func (x *Job) image(ctx context.Context, layers []ImageLayer) *events.Task {
	task := events.From(ctx)
	missing := func(l ImageLayer) bool {
		_, err := x.Snapshots.Manifest(ctx, layer.ID(l.DiffID.Encoded()))
		return err != nil
	}
	if !slices.ContainsFunc(layers, missing) {
		task.Emit(events.Cached{})
		return task
	}
	drop := task.Defer()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.unneeded = append(x.unneeded, drop)
	return task
}

// fetching is the fetch of layers of images for a vertex.
type fetching struct {
	mu   sync.Mutex
	held []*held
}

// held is an image whose layers are being fetched. Its vertex stays open meanwhile, and the one that needs them waits.
type held struct {
	source
	left    map[layer.ID]bool
	release func(error)
	resume  func()
}

// fetch reports that the layers with these indexes are being fetched, and that the vertex of ctx waits for them; idOf returns the ID of
// one. end must be called with the result.
func (x *Job) fetch(ctx context.Context, indexes []int, idOf func(i int) layer.ID) *fetching {
	f := &fetching{}
	for _, index := range indexes {
		id := idOf(index)
		x.mu.Lock()
		src, ok := x.sources[string(id)]
		x.mu.Unlock()
		if !ok {
			continue // the fetch says so
		}
		i := slices.IndexFunc(f.held, func(h *held) bool { return h.task == src.task })
		if i < 0 {
			i = len(f.held)
			f.held = append(f.held, &held{src, map[layer.ID]bool{}, src.task.Hold(), events.From(ctx).Wait(src.task)})
		}
		f.held[i].left[id] = true
		src.task.Emit(events.Transfer{Name: src.layer.Blob.Digest.String(), Phase: events.Queued, Total: src.layer.Blob.Size})
	}
	return f
}

// done says that a layer is there.
func (f *fetching) done(id layer.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.held {
		if delete(h.left, id); len(h.left) == 0 {
			h.end(nil)
		}
	}
}

// end ends what is not done, with the error of the fetch.
func (f *fetching) end(err error) {
	for _, h := range f.held {
		failed := err
		if e, ok := errors.AsType[*solver.ImageError](err); ok && e.Image != h.image {
			failed = context.Canceled // another one's failure ended it
		}
		h.end(failed)
	}
}

// end ends the fetch for one image. A second call does nothing.
func (h *held) end(err error) {
	h.release(err)
	h.resume()
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
