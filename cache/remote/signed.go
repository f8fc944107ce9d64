package remote

import (
	"fmt"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/solver"
)

// A signature is verified when a build first looks something up, and not before: a cache has thousands of records, and a build needs some.

type signedLayer struct {
	layer  pack.Layer
	signed bool
}

// record returns the record of a key, if it counts.
func (c *Import) record(key solver.Key) (pack.Record, bool) {
	r, ok := c.head.Pack.Records[key]
	return r, ok && counts(c, c.signed, key, func() bool { return c.Keys.Record(key, r) })
}

// shortcut returns the shortcut that leads from a key, if it counts.
func (c *Import) shortcut(from solver.Key) (pack.Shortcut, bool) {
	t, ok := c.head.Pack.Shortcuts[from]
	return t, ok && counts(c, c.signed, from, func() bool { return c.Keys.Shortcut(from, t) })
}

// counts reports whether something is signed, or need not be. seen are those that were looked up, by their keys.
func counts[K comparable](c *Import, seen map[K]bool, key K, verify func() bool) bool {
	if c.Keys == nil {
		return true
	}
	c.signing.Lock()
	defer c.signing.Unlock()
	signed, known := seen[key]
	if !known {
		signed = verify()
		seen[key] = signed
	}
	return signed
}

// base returns what is said of a layer of an image, if it counts.
func (c *Import) base(id layer.ID) (pack.Base, bool) {
	b, ok := c.head.Pack.Bases[id]
	return b, ok && counts(c, c.bases, id, func() bool { return c.Keys.Base(b) })
}

// layer returns a layer with those of its blobs that count, if it does itself.
func (c *Import) layer(id layer.ID) (pack.Layer, bool) {
	l, ok := c.head.Pack.Layers[id]
	if !ok || c.Keys == nil {
		return l, ok
	}
	c.signing.Lock()
	defer c.signing.Unlock()
	s, known := c.layers[id]
	if !known {
		s.layer, s.signed = c.Keys.Layer(l)
		s.signed = s.signed && len(s.layer.Blobs) > 0
		c.layers[id] = s
	}
	return s.layer, s.signed
}

// WarnUnsigned warns of each cache that had something a build asked for, and that counted for nothing because it was not signed.
func (im *Imports) WarnUnsigned() {
	for _, c := range im.All() {
		c.signing.Lock()
		n := 0
		for _, signed := range c.signed {
			if !signed {
				n++
			}
		}
		for _, signed := range c.bases {
			if !signed {
				n++
			}
		}
		for _, s := range c.layers {
			if !s.signed {
				n++
			}
		}
		c.signing.Unlock()
		if n > 0 {
			im.warn(fmt.Sprintf("the cache %s: not used because no key of verify= has signed them: %s", c.Repository, entries(n)))
		}
	}
}

func entries(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}
