// Package llb is the build graph: immutable vertices, each with a digest and one or more outputs. It knows what a step is,
// not how one runs, what it costs or whether it was run before.
package llb

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// Digest identifies a vertex by what it does and what it is made from. It is neither a cache key nor a content digest:
// two vertices with different digests may well have the same cache key.
type Digest [sha256.Size]byte

// String returns the digest in the form of OCI digests, "sha256:…".
func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }

// ParseDigest reads what String wrote.
func ParseDigest(s string) (d Digest, err error) {
	digits, ok := strings.CutPrefix(s, "sha256:")
	b, err := hex.DecodeString(digits)
	if !ok || err != nil || len(b) != len(d) {
		return d, fmt.Errorf("parse digest %q: want sha256: and %d hexadecimal digits", s, 2*len(d))
	}
	copy(d[:], b)
	return d, nil
}

// MarshalText is String.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is ParseDigest.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDigest(string(text))
	return err
}

// Op is what a vertex does. The implementations are Scratch, Image, Local, HTTP, Git, Blob, Exec, File, Merge, Diff and Passthrough; they
// are values and must not be changed once they are in a graph.
type Op interface {
	// Kind returns the op's name as it enters digests and cache keys, for example "exec".
	Kind() string
}

// Location is the part of a Dockerfile that a vertex comes from, for errors and progress. Lines count from 1.
type Location struct {
	File      string `json:"file,omitempty"`
	StartLine int    `json:"start,omitempty"`
	EndLine   int    `json:"end,omitempty"`
}

// Meta is what a vertex says of itself to people. Only NoCache and Platform are part of the vertex's identity.
type Meta struct {
	// Place is where the step stands, and Text what it does: "RUN make".
	Place Place
	Text  string
	// Location is where the instruction stands; the zero value where there is none.
	Location Location
	// NoCache says that no earlier result may stand in for this vertex.
	NoCache bool
	// Platform is "os/arch[/variant]" for which the step runs, as in Platform.String; "" where the platform does not decide the result.
	Platform string
}

// Name returns the line of progress output: "[build 2/5] RUN make".
func (m Meta) Name() string { return m.Place.String() + m.Text }

// Vertex is a step of a build. Vertices are made by Graph.Add alone.
type Vertex struct {
	op     Op
	inputs []Output
	meta   Meta
	digest Digest
}

// Output is one of the root file systems that a vertex makes. The zero Output is that of no vertex.
type Output struct {
	Vertex *Vertex
	// Index counts from 0. Which outputs a vertex has, its op decides: see Bases.
	Index int
}

// Op returns what the vertex does.
func (v *Vertex) Op() Op { return v.op }

// Inputs returns the outputs that this vertex reads, in the op's own order. Input 0 of Exec, File and Merge is the root file
// system that the op works on. The slice must not be changed.
func (v *Vertex) Inputs() []Output { return v.inputs }

// Output returns the vertex's output number i.
func (v *Vertex) Output(i int) Output { return Output{v, i} }

// Meta returns the vertex's description.
func (v *Vertex) Meta() Meta { return v.meta }

// Digest returns the vertex's identity.
func (v *Vertex) Digest() Digest { return v.digest }

// Vertices returns the vertices that the roots need, and the roots, each once: in an order that only the graph decides.
func Vertices(roots []Output) iter.Seq[*Vertex] {
	return func(yield func(*Vertex) bool) {
		seen := map[*Vertex]bool{}
		queue := slices.Clone(roots)
		for len(queue) > 0 {
			v := queue[len(queue)-1].Vertex
			queue = queue[:len(queue)-1]
			if seen[v] {
				continue
			}
			seen[v] = true
			if !yield(v) {
				return
			}
			queue = append(queue, v.inputs...)
		}
	}
}

// Graph holds the vertices of one build; equal vertices are one vertex, also across stages and platforms.
// The zero value is an empty graph. It is not safe for concurrent use.
type Graph struct {
	byDigest map[Digest]*Vertex
}

// Add returns the vertex with this op, these inputs, and meta's NoCache and Platform. If the graph holds it already
// that vertex is returned, with the Meta of the first Add.
func (g *Graph) Add(op Op, meta Meta, inputs ...Output) *Vertex {
	d := digestOf(op, meta, inputs)
	if v, ok := g.byDigest[d]; ok {
		return v
	}
	v := &Vertex{op: op, inputs: inputs, meta: meta, digest: d}
	if g.byDigest == nil {
		g.byDigest = map[Digest]*Vertex{}
	}
	g.byDigest[d] = v
	return v
}

func digestOf(op Op, meta Meta, inputs []Output) Digest {
	type identity struct {
		Kind     string
		Op       Op
		NoCache  bool
		Platform string
		Inputs   []string
	}
	id := identity{Kind: op.Kind(), Op: op, NoCache: meta.NoCache, Platform: meta.Platform}
	for _, in := range inputs {
		name := in.Vertex.digest.String()
		if in.Index > 0 {
			name += "#" + strconv.Itoa(in.Index)
		}
		id.Inputs = append(id.Inputs, name)
	}
	// Ops are structs of plain values in a fixed order, so their JSON is canonical.
	data, err := json.Marshal(id)
	if err != nil {
		panic(fmt.Sprintf("BUG: op %s cannot be encoded: %v", op.Kind(), err))
	}
	return sha256.Sum256(data)
}
