package attesting

import (
	"slices"
	"testing"

	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/frontend/imageconfig"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// TestWay holds that nothing more is solved for an image whose history names all of its steps, as that of a Dockerfile does, and that for
// others it is known how many layers each step is on.
func TestWay(t *testing.T) {
	g := &llb.Graph{}
	base := g.Add(llb.Image{Ref: "debian"}, llb.Meta{}).Output(0)
	lower := g.Add(llb.Exec{Args: []string{"a"}}, llb.Meta{}, base)
	upper := g.Add(llb.Exec{Args: []string{"b"}}, llb.Meta{}, lower.Output(0))
	root := upper.Output(0)
	image := func(steps ...*llb.Vertex) frontend.Image {
		img := frontend.Image{Root: root, History: []imageconfig.History{{CreatedBy: "base"}}}
		for _, v := range steps {
			img.History = append(img.History, imageconfig.History{Vertex: v})
		}
		return img
	}
	a := &Attester{}
	roots := []llb.Output{root, root}
	if got := a.Way(roots, []frontend.Image{image(lower, upper), image(lower, upper)}); !slices.Equal(got, roots) {
		t.Errorf("%d outputs for two Dockerfiles", len(got))
	}
	refs := []solver.Ref{solver.NewRef(solver.Layer{ID: "x"}), {}}
	if got := a.Solved(refs); len(got) != 2 || len(a.depths) != 0 {
		t.Errorf("%d roots, depths %v", len(got), a.depths)
	}

	// The first on an input of which the history says nothing, the other by a Dockerfile alone.
	way := append(roots, root, lower.Output(0), base)
	if got := a.Way(roots, []frontend.Image{image(upper), image(lower, upper)}); !slices.Equal(got, way) {
		t.Fatalf("%d outputs", len(got))
	}
	one := solver.NewRef(solver.Layer{ID: "x"})
	two := one.Push(solver.Layer{ID: "y"})
	three := two.Push(solver.Layer{ID: "z"})
	got := a.Solved([]solver.Ref{three, three, three, two, one})
	if len(got) != 2 || a.depths[root] != 3 || a.depths[lower.Output(0)] != 2 || a.depths[base] != 1 {
		t.Errorf("%d roots, depths %v", len(got), a.depths)
	}
	if got := a.Solved(nil); got != nil {
		t.Errorf("of a build that failed: %v", got)
	}
}
