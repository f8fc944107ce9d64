package imageconfig

import (
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Made is how a layer came to be.
type Made struct {
	By string
	// At is nil if it is not known.
	At *time.Time
}

// Vertices returns how many entries of a history are those of vertices.
func Vertices(history []History) int {
	n := 0
	for _, h := range history {
		if h.Vertex != nil {
			n++
		}
	}
	return n
}

// completed is the comment of entries that were added, as BuildKit has it.
const completed = "buildkit.exporter.image.v0"

// Complete returns the history of an image that has these layers, the lowest first, as far as it is given: with an entry for each layer,
// and a time in each entry. Entries for layers that are not there become empty ones.
func Complete(history []ocispec.History, layers []Made) []ocispec.History {
	history = slices.Clone(history)
	named := 0
	for i := range history {
		if history[i].EmptyLayer {
			continue
		}
		if named == len(layers) {
			history[i].EmptyLayer = true
			continue
		}
		if history[i].Created == nil {
			history[i].Created = layers[named].At
		}
		named++
	}
	for _, l := range layers[named:] {
		history = append(history, ocispec.History{Created: l.At, CreatedBy: l.By, Comment: completed})
	}
	// What is before the first time is no later than that.
	var last *time.Time
	for i := len(history) - 1; i >= 0; i-- {
		if history[i].Created != nil {
			last = history[i].Created
		}
	}
	for i := range history {
		if history[i].Created == nil {
			history[i].Created = last
		}
		last = history[i].Created
	}
	return history
}
