package exporter

import (
	"context"
	"io"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Receiver takes what an export writes, in place of a file or a directory of this machine. What a method wrote is there as a whole when it
// returns nil.
type Receiver interface {
	// WriteFile has a file written. about says what it is, by the names that BuildKit's clients know: "containerimage.digest".
	WriteFile(ctx context.Context, about map[string]string, write func(io.Writer) error) error
	// WriteFiles has files written to a directory. All times become epoch unless it is nil.
	WriteFiles(ctx context.Context, epoch *time.Time, roots ...Root) error
	// WriteBlobs has those of blobs written that are missing, in this order. open returns the bytes of one.
	WriteBlobs(ctx context.Context, blobs []ocispec.Descriptor, open func(ocispec.Descriptor) (io.ReadCloser, error)) error
}

// Send has the image's blobs written to a receiver. All of them must be in the store.
func (b *Blobs) Send(ctx context.Context, to Receiver, a *Assembled) error {
	return to.WriteBlobs(ctx, blobsOf([]Archived{{Assembled: a}}), b.Store.Open)
}
