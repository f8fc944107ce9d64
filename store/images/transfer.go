package images

import (
	"context"
	"io"
	"sync"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Uploads returns what a push reports to: a transfer of the task for each blob.
func Uploads(task *events.Task) registry.PushProgress {
	return &uploads{task: task, byDigest: map[digest.Digest]func(current int64, done bool){}}
}

type uploads struct {
	task     *events.Task
	mu       sync.Mutex
	byDigest map[digest.Digest]func(current int64, done bool)
}

// Queued implements registry.PushProgress.
func (u *uploads) Queued(d ocispec.Descriptor) {
	u.task.Emit(events.Transfer{Name: d.Digest.String(), Phase: events.Queued, Total: d.Size})
}

// Sent implements registry.PushProgress.
func (u *uploads) Sent(d ocispec.Descriptor, done int64) {
	u.mu.Lock()
	transfer := u.byDigest[d.Digest]
	if transfer == nil {
		transfer = u.task.Transferring(d.Digest.String(), events.Moving, d.Size)
		u.byDigest[d.Digest] = transfer
	}
	u.mu.Unlock()
	transfer(done, false)
}

// Exists implements registry.PushProgress.
func (u *uploads) Exists(d ocispec.Descriptor) {
	u.task.Emit(events.Transfer{Name: d.Digest.String(), Phase: events.Exists, Current: d.Size, Total: d.Size, Done: true})
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

// Reporting is a source of blobs that reports to the vertex of the context how much of each has come.
type Reporting struct{ image.Source }

// Fetch implements image.Source.
func (r Reporting) Fetch(ctx context.Context, ref string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	blob, err := r.Source.Fetch(ctx, ref, desc)
	if err != nil {
		return nil, err
	}
	return Downloading(ctx, desc, blob), nil
}

// Downloading returns a reader of a blob that reports to the vertex of ctx how much of it has come.
func Downloading(ctx context.Context, desc ocispec.Descriptor, blob io.ReadCloser) io.ReadCloser {
	return &downloading{ReadCloser: blob, report: events.From(ctx).Transferring(desc.Digest.String(), events.Moving, desc.Size)}
}

// OCIPlatform returns a platform as OCI writes it.
func OCIPlatform(p llb.Platform) ocispec.Platform {
	return ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion}
}
