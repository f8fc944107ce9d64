package build

import (
	"io"
	"sync"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// verified collects the steps that ran again to verify the cache. It is an events.Sink.
type verified struct {
	mu    sync.Mutex
	names map[llb.Digest]string
	steps []Verified
}

// Event implements events.Sink.
func (v *verified) Event(e events.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch b := e.Body.(type) {
	case events.Started:
		v.names[e.Vertex] = b.Name()
	case events.Again:
		v.steps = append(v.steps, Verified{Step: v.names[e.Vertex], Again: b})
	case events.Finished:
		delete(v.names, e.Vertex)
	}
}

// uploads returns what a push reports to: a transfer of the task for each blob.
func uploads(task *events.Task) func(d ocispec.Descriptor, done int64) {
	var mu sync.Mutex
	byDigest := map[digest.Digest]func(current int64, done bool){}
	return func(d ocispec.Descriptor, done int64) {
		mu.Lock()
		transfer := byDigest[d.Digest]
		if transfer == nil {
			transfer = task.Transferring(d.Digest.String(), d.Size)
			byDigest[d.Digest] = transfer
		}
		mu.Unlock()
		transfer(done, false)
	}
}

// downloading is a reader of a blob that reports to a transfer how much was read.
type downloading struct {
	io.ReadCloser
	n      int64
	report func(current int64, done bool)
}

func (d *downloading) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	d.n += int64(n)
	d.report(d.n, err == io.EOF)
	return n, err
}
