package solver

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Content is the digest of what a layer or a root file system holds: names, types, modes, owners, extended attributes,
// links and bytes, never times. It is neither a key nor the digest of a blob.
type Content [sha256.Size]byte

// String returns the digest as 64 hexadecimal digits.
func (c Content) String() string { return hex.EncodeToString(c[:]) }

// ParseContent reads what Content.String wrote.
func ParseContent(s string) (Content, error) {
	var c Content
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(c) {
		return c, fmt.Errorf("parse content digest %q: want %d hexadecimal digits", s, 2*len(c))
	}
	copy(c[:], b)
	return c, nil
}

// Layer is one committed change of a root file system.
type Layer struct {
	// ID names the layer in the snapshot store.
	ID string
	// Content is the digest of its entries; the zero value for a layer without entries.
	Content Content
}

// Chain is a root file system as the layers that it is made of. Chains are immutable and share their lower parts; the nil
// *Chain is the empty root.
type Chain struct {
	parent  *Chain
	layer   Layer
	content Content
	depth   int
}

// Push returns the chain with one more layer on top.
func (c *Chain) Push(l Layer) *Chain {
	up := &Chain{parent: c, layer: l, content: c.Content(), depth: c.Depth() + 1}
	if l.Content != (Content{}) {
		// A layer that changes nothing leaves the content of the root as it was, so what follows stays cached.
		h := sha256.New()
		parent := c.Content()
		h.Write(parent[:])
		h.Write(l.Content[:])
		up.content = Content(h.Sum(nil))
	}
	return up
}

// Content returns the digest of the whole root file system; the zero value for the empty one.
func (c *Chain) Content() Content {
	if c == nil {
		return Content{}
	}
	return c.content
}

// Depth returns the number of layers.
func (c *Chain) Depth() int {
	if c == nil {
		return 0
	}
	return c.depth
}

// Parent returns the chain without its top layer; c must not be nil.
func (c *Chain) Parent() *Chain { return c.parent }

// Top returns the uppermost layer; c must not be nil.
func (c *Chain) Top() Layer { return c.layer }

// Layers returns the layers from the lowest to the uppermost.
func (c *Chain) Layers() []Layer {
	out := make([]Layer, c.Depth())
	for ; c != nil; c = c.parent {
		out[c.depth-1] = c.layer
	}
	return out
}
