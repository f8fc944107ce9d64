package caching

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/solver"
)

// inline is what an image's own cache is made of. It is an events.Sink.
type inline struct {
	mu       sync.Mutex
	finished map[llb.Digest]events.Finished // what has ended well, and has a key
}

// Event implements events.Sink.
func (x *inline) Event(e events.Event) {
	done, ok := ended(e)
	if !ok {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.finished[e.Vertex] = done
}

// Embeds reports whether an image has its cache in its config.
func (c *Caches) Embeds() bool { return c.inline != nil }

// Inline returns what makes the cache that an image has in its config, of the steps that its root needs and its layers, the lowest first;
// nil if it is to have none.
func (c *Caches) Inline(ctx context.Context, root llb.Output, layers []layer.ID) func(blob.Encoding) ([]byte, error) {
	if c.inline == nil {
		return nil
	}
	return func(f blob.Encoding) ([]byte, error) {
		if f.Windows {
			c.config.Events.Warn("the image has no inline cache, since it is for Windows")
			return nil, nil
		}
		in := pack.Inline{Encoding: f.String(), Shortcuts: map[solver.Key]solver.Key{}}
		steps, known := map[solver.Key]pack.InlineStep{}, map[solver.Key]pack.InlineStep{}
		c.inline.mu.Lock()
		defer c.inline.mu.Unlock()
		for v := range llb.Vertices([]llb.Output{root}) {
			s, inImage, ok, err := c.inlineStep(ctx, c.inline.finished[v.Digest()], layers)
			switch {
			case err != nil:
				return nil, err
			case inImage:
				steps[s.Key] = s
			case ok:
				known[s.Key] = s
			}
		}
		for key, s := range steps {
			in.Steps = append(in.Steps, s)
			delete(known, key)
		}
		in.Known = slices.Collect(maps.Values(known))
		c.cache.mu.Lock()
		for from, t := range c.cache.shortcuts {
			_, inImage := steps[t.Key]
			if _, ok := known[t.Key]; ok || inImage {
				in.Shortcuts[from] = t.Key
			}
		}
		c.cache.mu.Unlock()
		data, left, err := in.Encode()
		if left > 0 {
			all := len(in.Steps) + len(in.Known)
			c.config.Events.Warn(fmt.Sprintf("the inline cache would be too large, and has %d of %d steps", all-left, all))
		}
		return data, err
	}
}

// inlineStep returns the record of a step, and whether the image has its layers; false if it has no record.
func (c *Caches) inlineStep(ctx context.Context, done events.Finished, layers []layer.ID) (s pack.InlineStep, inImage, ok bool, err error) {
	if s.Key, err = solver.ParseKey(done.Key); err != nil {
		return s, false, false, nil // it has not ended well, or its result is not a record's
	}
	for _, m := range done.Materials {
		s.Materials = append(s.Materials, solver.Material{URI: m.URI, Digest: m.Digest})
	}
	inImage = true
	for _, out := range done.Outputs {
		o := pack.InlineOutput{Output: out.Index, Layer: slices.Index(layers, layer.ID(out.Layer))}
		inImage = inImage && o.Layer >= 0
		if out.Content != "" {
			if o.Content, err = solver.ParseContent(out.Content); err != nil {
				return s, false, false, err
			}
		}
		s.Outputs = append(s.Outputs, o)
	}
	for i, out := range s.Outputs {
		if out.Layer >= 0 && out.Content != (solver.Content{}) {
			if s.Outputs[i].Opaque, err = c.hides(ctx, layers[out.Layer]); err != nil {
				return s, false, false, err
			}
		}
	}
	return s, inImage, true, nil
}

// hides reports whether a layer hides what lies below it.
func (c *Caches) hides(ctx context.Context, id layer.ID) (bool, error) {
	if l, ok := c.cache.imports.Layer(id); ok {
		return l.Opaque, nil
	}
	m, err := c.config.Layers.Manifest(ctx, id)
	if err != nil {
		return false, err
	}
	return m.HidesBelow(), nil
}
