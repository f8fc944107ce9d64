package solver

import (
	"context"
	"io"
	"time"

	"github.com/kilnbuild/kiln/llb"
)

// Planner finds out what decides the result of a step. It reads the manifests of layers and the contexts of the client, asks
// servers what they have, and changes nothing. It knows one step at a time, and not the graph. Implementations are safe for
// concurrent use.
type Planner interface {
	// Plan looks at a step whose inputs are in.
	Plan(ctx context.Context, op llb.Op, meta llb.Meta, in []Ref) (Plan, error)
	// Uses says what a step with this op and so many inputs needs of each of them.
	Uses(op llb.Op, inputs int) []Use
}

// Use is what a step needs of an input to make its own layers.
type Use int

const (
	// UseEntries: what is in it, and no bytes of files.
	UseEntries Use = iota
	// UseFiles: its files.
	UseFiles
	// UseLayers: its layers become those of the step's output 0.
	UseLayers
)

// Plan is what a Planner has found out about a step.
type Plan struct {
	// Done says that there is nothing to execute: Outputs are there already. The other fields are then empty.
	Done    bool
	Outputs []Ref
	// Inputs decide the result of Work.
	Inputs []Input
	// Work is what an Executor does, as a plain value that can be encoded; it lies on what llb.Bases says.
	Work Work
	// Materials are what Work takes from servers.
	Materials []Material
}

// Work is what is to be done. Planners and Executors agree on its types.
type Work any

// Material is something from a server that a result is made of.
type Material struct {
	// URI is its address without credentials, and Digest, as "sha256:…" or "sha1:…", what was there.
	URI    string
	Digest string
}

// Made is a layer of one of a step's outputs. An output can have any number of them; they come with the lowest first.
type Made struct {
	Output int
	Layer
}

// Executor does the work of steps. Implementations are safe for concurrent use.
type Executor interface {
	// Execute does the work of a Plan and returns the layers that it made.
	Execute(ctx context.Context, w Work, job Job) ([]Made, error)
	// Missing returns why a layer of an earlier build cannot be used, nil if it can, and fs.ErrNotExist if it was removed.
	Missing(ctx context.Context, l Layer) error
	// Expect tells of an output of a source, which a Planner has found to be there, what will probably be needed of it. Demand is
	// only called where that matters.
	Expect(r Ref, demand func() Demand)
}

// Job is what an Executor is given besides the work. It has no part in the result.
type Job struct {
	// Stdout and Stderr take the output of processes.
	Stdout io.Writer
	Stderr io.Writer
	// Last are the layers that the step made when it last ran, for what can be taken from them.
	Last []Made
	// Demand is what is needed of each output.
	Demand []Demand
}

// LastOf returns the id of the layer that the step made for an output when it last ran; "" for none.
func (j Job) LastOf(output int) string {
	for _, m := range j.Last {
		if m.Output == output {
			return m.ID
		}
	}
	return ""
}

// Demand is what later steps and exports need of an output besides its entries.
type Demand struct {
	// Files says that somebody reads its files, or runs in it.
	Files bool
	// Blob is the form in which its layers are exported as blobs; "" if they are not.
	Blob string
}

// add adds another demand.
func (d *Demand) add(other Demand) {
	d.Files = d.Files || other.Files
	if d.Blob == "" {
		d.Blob = other.Blob
	}
}

// Record is what is remembered of a step that ran.
type Record struct {
	Outputs []Made
	// Inputs are the key's inputs in words.
	Inputs []Input
	// Materials are those of the Plan. They are in events.Finished, so in the history of builds, and kiln explain shows them.
	Materials []Material
	// Name is the step's progress line when it ran.
	Name string
	// Started and Took say when the step ran, and for how long.
	Started time.Time
	Took    time.Duration
	// LogSize is the length in bytes of the step's log, which the cache keeps beside the record.
	LogSize int64
}
