package execute

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// told is what happens to vertices, in words.
type told struct {
	names map[llb.Digest]string
	words []string
}

func (c *told) Event(e events.Event) {
	word := fmt.Sprintf("%T", e.Body)
	switch b := e.Body.(type) {
	case events.Started:
		c.names[e.Vertex] = b.Text
	case events.Finished:
		word += map[bool]string{true: " canceled"}[b.Canceled] + b.Error
	case events.Transfer:
		word += " " + string(b.Phase)
	}
	c.words = append(c.words, c.names[e.Vertex]+" "+strings.TrimPrefix(word, "events."))
}

// An image ends when its own layers are there, whatever else the step needs, and with its own error alone.
func TestFetch(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want []string
	}{
		{"good", nil, []string{"b Finished", "step Resumed"}},
		{"b fails", &solver.ImageError{Image: llb.Image{Ref: "b"}, Err: errors.New("broken")}, []string{"b Finishedbroken", "step Resumed"}},
		{
			"another fails", &solver.ImageError{Image: llb.Image{Ref: "c"}, Err: errors.New("broken")},
			[]string{"b Finished canceled", "step Resumed"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &told{names: map[llb.Digest]string{}}
			s := events.New(c)
			x := &Job{sources: map[string]source{}}
			for _, name := range []string{"a", "b"} {
				task := s.Task(llb.Place{}, name)
				task.Defer()
				task.Done(nil)
				x.sources[name] = source{llb.Image{Ref: name}, ImageLayer{Blob: ocispec.Descriptor{Digest: "sha256:x", Size: 1}}, task}
			}
			step := s.Task(llb.Place{}, "step")
			ids := []layer.ID{"a", "b"}
			f := x.fetch(events.With(t.Context(), step), []int{0, 1}, func(i int) layer.ID { return ids[i] })
			f.done("a")
			f.end(tc.err)
			want := append([]string{
				"a Started", "a Waiting", "b Started", "b Waiting", "step Started", "a Resumed", "step Waiting", "a Transfer waiting",
				"b Resumed", "b Transfer waiting", "a Finished",
			}, tc.want...)
			if !slices.Equal(c.words, want) {
				t.Errorf("got  %q\nwant %q", c.words, want)
			}
		})
	}
}
