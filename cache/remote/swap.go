package remote

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/kilnbuild/kiln/cache/pack"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Swapper is a Repository that replaces a manifest only if nobody else has. Then writers need no entries of their own: each adds its
// records to what the cache holds, and again to what it holds then if another one was faster. Its Get brings the records along that a
// manifest names, so Open makes no request for them.
type Swapper interface {
	Repository
	// Swap makes data the manifest of a tag if that has the manifest with the digest old, "" for none; otherwise the error wraps ErrConflict.
	Swap(ctx context.Context, tag, mediaType string, old digest.Digest, data []byte) error
}

// Sweeper is a Repository that can remove blobs which no manifest names.
type Sweeper interface {
	// Sweep removes such blobs, but none that a writer may be about to name.
	Sweep(ctx context.Context) error
}

// Keeper is a Repository whose blobs are removed when they are old, by Sweep or by rules of its owner.
type Keeper interface {
	// Keep makes a blob count as young. The error wraps fs.ErrNotExist if it is not there.
	Keep(ctx context.Context, desc ocispec.Descriptor) error
}

// ErrConflict is wrapped by the error of a Swap of what another writer has replaced.
var ErrConflict = errors.New("another writer was faster")

const (
	// maxSwaps bounds how often a writer tries to swap: at least one of those who try at the same time succeeds.
	maxSwaps = 200
	// firstSwapPause bounds how long a writer waits before it tries again, at random. It doubles up to maxSwapPause.
	firstSwapPause = 50 * time.Millisecond
	maxSwapPause   = 2 * time.Second
)

// swap replaces the cache by what change returns for it, until that succeeds or change returns nil. Before it puts a manifest it calls
// sent, which returns once the blobs are put that the result refers to.
func (w *Writer) swap(
	ctx context.Context, s Swapper, sent func(context.Context) error, change func(*pack.Pack) *pack.Pack,
) (*pack.Pack, error) {
	for try := range maxSwaps {
		h, err := w.head(ctx)
		if err != nil {
			return nil, err
		}
		sum := change(h.Pack)
		if sum == nil {
			return h.Pack, nil
		}
		d, err := newDocument(sum, nil, w.Form, false)
		if err != nil {
			return nil, err
		}
		if err := w.send(ctx, d, sent); err != nil {
			return nil, err
		}
		sent = nothing
		if err := s.Swap(ctx, w.tag, d.mediaType, h.digest, d.manifest); !errors.Is(err, ErrConflict) {
			return sum, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(rand.N(min(firstSwapPause<<min(try, 6), maxSwapPause))):
		}
	}
	return nil, fmt.Errorf("%w %d times", ErrConflict, maxSwaps)
}

// add returns the change that adds the writer's own records.
func (w *Writer) add(held *pack.Pack) *pack.Pack {
	if held.Has(w.own, Slack) {
		return nil
	}
	sum := &pack.Pack{}
	sum.Add(held)
	sum.Add(w.own)
	sum.Trim(w.limit, time.Now())
	if held.Has(sum, Slack) { // what is new does not fit
		return nil
	}
	return sum
}
