package plan

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/session"
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
	d, err := localdir.Open(t.Context(), p.dir, nil, filepath.Join(p.Tmp, "id"), p.Tmp)
	if err != nil {
		t.Fatal(err)
	}
	p.Session.Locals = session.Trees{"context": d}
	for name, op := range map[string]llb.Copy{
		"everything":   {Sources: []llb.CopySource{{Input: 1, Path: "/"}}, Dest: "/"},
		"excluded":     {Sources: []llb.CopySource{{Input: 1, Path: "/"}}, Dest: "/", Exclude: []string{"**/file"}},
		"a wildcard":   {Sources: []llb.CopySource{{Input: 1, Path: "/*/file"}}, Dest: "/to/"},
		"nothing":      {Sources: []llb.CopySource{{Input: 1, Path: "/*/missing"}}, Dest: "/to/"},
		"parents":      {Sources: []llb.CopySource{{Input: 1, Path: "/**/file"}}, Dest: "/to/", Parents: true},
		"with a pivot": {Sources: []llb.CopySource{{Input: 1, Path: "/dir*/./file"}}, Dest: "/to/", Parents: true},
	} {
		for _, at := range []int{1, 5, dirs / 2} {
			if _, err := p.Plan(ctxtest.EndAfter(at), copyOp(op), llb.Meta{}, []solver.Ref{scratch, local}); !errors.Is(err, ctxtest.ErrEnded) {
				t.Errorf("%s: Plan, whose context ended when it was looked at %d times: %v", name, at, err)
			}
		}
	}
}
