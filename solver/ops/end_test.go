package ops

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// TestPlanEnds shows that planning a COPY ends with its context, however it selects its files.
func TestPlanEnds(t *testing.T) {
	p := newPlanner(t)
	const dirs = 100
	for i := range dirs {
		dir := filepath.Join(p.dir, fmt.Sprintf("dir%d", i))
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	// The directory's own context does not end: this is about the planning.
	d, err := localdir.Open(t.Context(), p.dir, nil, filepath.Join(p.Root, "context", "id"), p.Tmp)
	if err != nil {
		t.Fatal(err)
	}
	p.Local = map[string]layer.Tree{"context": d}
	for name, op := range map[string]llb.Copy{
		"everything":   {Sources: []llb.CopySource{{Input: 1, Path: "/"}}, Dest: "/"},
		"excluded":     {Sources: []llb.CopySource{{Input: 1, Path: "/"}}, Dest: "/", Exclude: []string{"**/file"}},
		"a wildcard":   {Sources: []llb.CopySource{{Input: 1, Path: "/*/file"}}, Dest: "/to/"},
		"nothing":      {Sources: []llb.CopySource{{Input: 1, Path: "/*/missing"}}, Dest: "/to/"},
		"parents":      {Sources: []llb.CopySource{{Input: 1, Path: "/**/file"}}, Dest: "/to/", Parents: true},
		"with a pivot": {Sources: []llb.CopySource{{Input: 1, Path: "/dir*/./file"}}, Dest: "/to/", Parents: true},
	} {
		var g llb.Graph
		v := g.Add(copyOp(op), llb.Meta{}, g.Add(llb.Scratch{}, llb.Meta{}).Output(0), g.Add(llb.Local{Name: "context"}, llb.Meta{}).Output(0))
		for _, at := range []int{1, 5, dirs / 2} {
			if _, err := p.Plan(ctxtest.EndAfter(at), v, []*solver.Chain{nil, nil}); !errors.Is(err, ctxtest.ErrEnded) {
				t.Errorf("%s: Plan, whose context ended when it was looked at %d times: %v", name, at, err)
			}
		}
	}
}

// TestFillEnds shows that what comes from elsewhere is read until the context ends.
func TestFillEnds(t *testing.T) {
	p := newPlanner(t)
	if _, err := p.File(ctxtest.EndAfter(10), "file", io.LimitReader(zeros{}, 64<<20)); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("File: %v", err)
	}
}

// zeros are as many as are asked for.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
