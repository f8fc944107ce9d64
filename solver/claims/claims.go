// Package claims keeps what caches say is in layers of images, as far as a build has relied on it, until it shows whether that is true. It
// does not know what the build does with it.
package claims

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/once"
	"github.com/kilnbuild/kiln/snapshot"
)

// Source are caches. It is safe for concurrent use.
type Source interface {
	// Base reports whether a cache says what is in a layer of an image, whose diff ID is id, and BaseManifest opens that, in the form of
	// package layer.
	Base(id layer.ID) bool
	BaseManifest(ctx context.Context, id layer.ID) (io.ReadCloser, error)
}

// Claims are those that one build relies on. They are safe for concurrent use.
type Claims struct {
	source  Source // nil for none
	layers  *snapshot.Job
	opening once.Group[layer.ID, struct{}]

	mu       sync.Mutex
	relied   map[layer.ID]*layer.Manifest
	received []*layer.Manifest // all that were ever there, since a step may still read one that was wrong
}

// New returns the claims of a source, which may be nil. Close must be called.
func New(s Source, layers *snapshot.Job) *Claims {
	return &Claims{source: s, layers: layers, relied: map[layer.ID]*layer.Manifest{}}
}

// Close ends the use of the manifests that Manifest has returned.
func (c *Claims) Close() error {
	var err error
	for _, m := range c.received {
		err = errors.Join(err, m.Close())
	}
	return err
}

// Has reports whether a cache says what is in a layer of an image.
func (c *Claims) Has(id layer.ID) bool { return c.source != nil && c.source.Base(id) }

// Relied reports whether the build has relied on what is said of a layer.
func (c *Claims) Relied(id layer.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relied[id] != nil
}

// Manifest returns what a cache says is in a layer.
func (c *Claims) Manifest(ctx context.Context, id layer.ID) (*layer.Manifest, error) {
	_, err := c.opening.Do(ctx, id, func(ctx context.Context) (struct{}, error) { return struct{}{}, c.open(ctx, id) })
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.relied[id]; m != nil {
		return m, nil
	}
	if err == nil {
		err = wrong(id) // that has shown since
	}
	return nil, err
}

func (c *Claims) open(ctx context.Context, id layer.ID) error {
	if c.Relied(id) {
		return nil
	}
	m, err := c.layers.ReceiveManifest(ctx, id, func(ctx context.Context) (io.ReadCloser, error) { return c.source.BaseManifest(ctx, id) })
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.relied[id] = m
	c.received = append(c.received, m)
	return nil
}

// Confirm compares what the build has relied on with what is in a layer. If that is something else, nothing counts any more that was
// relied on, and the error is a *snapshot.ForeignError.
func (c *Claims) Confirm(id layer.ID, m *layer.Manifest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if said := c.relied[id]; said == nil || said.Identity == m.Identity {
		return nil
	}
	clear(c.relied)
	return wrong(id)
}

func wrong(id layer.ID) error {
	return &snapshot.ForeignError{ID: id, Err: errors.New("what is in it is not what the cache says")}
}
