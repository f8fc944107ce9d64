package solver

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/kilnbuild/kiln/llb"
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

// MarshalText is String.
func (c Content) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is ParseContent.
func (c *Content) UnmarshalText(text []byte) (err error) {
	*c, err = ParseContent(string(text))
	return err
}

// Layer is one committed change of a root file system.
type Layer struct {
	// ID names the layer in the snapshot store.
	ID string `json:"id"`
	// Content is the digest of its entries; the zero value for a layer without entries.
	Content Content `json:"content"`
}

// Ref is a root file system: the layers that it is made of, and the digest of its content. Or it is a directory of the client,
// which has neither. Refs are immutable and share their lower parts; the zero Ref is the empty root.
type Ref struct {
	top *stacked
	// Local is the client's directory; nil for a root file system.
	Local *llb.Local
}

// stacked is a layer with those below it.
type stacked struct {
	below   *stacked
	layer   Layer
	content Content // of the whole
	depth   int
	// changed is the uppermost of this and those below whose layer has entries; nil for none. changes is how many have some.
	changed *stacked
	changes int
}

// NewRef returns the root file system made of these layers, the lowest first.
func NewRef(layers ...Layer) Ref {
	var r Ref
	for _, l := range layers {
		r = r.Push(l)
	}
	return r
}

// Push returns the root with one more layer on top.
func (r Ref) Push(l Layer) Ref {
	up := &stacked{below: r.top, layer: l, content: r.Content(), depth: r.Depth() + 1}
	if r.top != nil {
		up.changed, up.changes = r.top.changed, r.top.changes
	}
	if l.Content != (Content{}) {
		// A layer that changes nothing leaves the content of the root as it was, so what follows stays cached.
		h := sha256.New()
		h.Write(up.content[:])
		h.Write(l.Content[:])
		up.content = Content(h.Sum(nil))
		up.changed = up
		up.changes++
	}
	return Ref{top: up}
}

// Content returns the digest of the whole root file system; the zero value for the empty one.
func (r Ref) Content() Content {
	if r.top == nil {
		return Content{}
	}
	return r.top.content
}

// Depth returns the number of layers.
func (r Ref) Depth() int {
	if r.top == nil {
		return 0
	}
	return r.top.depth
}

// Layers returns the layers from the lowest to the uppermost.
func (r Ref) Layers() []Layer {
	out := make([]Layer, r.Depth())
	for at := r.top; at != nil; at = at.below {
		out[at.depth-1] = at.layer
	}
	return out
}

// Change is a layer that has entries, and the content of the root that it was made over.
type Change struct {
	Layer
	Below Content
}

// Changes returns the layers that have entries, from the lowest to the uppermost: the root is the same without the
// others, which take no time.
func (r Ref) Changes() []Change {
	if r.top == nil {
		return nil
	}
	out := make([]Change, r.top.changes)
	for at := r.top.changed; at != nil; {
		below := Ref{top: at.below}
		out[at.changes-1] = Change{at.layer, below.Content()}
		if at = at.below; at != nil {
			at = at.changed
		}
	}
	return out
}

// Below returns the root without its layers above the lowest n.
func (r Ref) Below(n int) Ref {
	at := r.top
	for at != nil && at.depth > n {
		at = at.below
	}
	return Ref{top: at}
}

// ref is the JSON form of a Ref.
type ref struct {
	Local  *llb.Local `json:"local,omitempty"`
	Layers []Layer    `json:"layers,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (r Ref) MarshalJSON() ([]byte, error) { return json.Marshal(ref{r.Local, r.Layers()}) }

// UnmarshalJSON implements json.Unmarshaler.
func (r *Ref) UnmarshalJSON(data []byte) error {
	var decoded ref
	if err := json.Unmarshal(data, &decoded); err != nil {
		return err
	}
	*r = NewRef(decoded.Layers...)
	r.Local = decoded.Local
	return nil
}
