package execute

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
)

// A root of more layers than can be mounted is an error before anything of it is unpacked.
func TestMountable(t *testing.T) {
	var root solver.Ref
	for i := range snapshot.MaxLayers {
		root = root.Push(solver.Layer{ID: fmt.Sprintf("%064x", i), Content: solver.Content{1}})
	}
	root = root.Push(solver.Layer{ID: fmt.Sprintf("%064x", 0), Content: solver.Content{1}}) // a layer that is there already
	root = root.Push(solver.Layer{ID: fmt.Sprintf("%064x", 1000)})                          // one without entries
	if err := mountable(root); err != nil {
		t.Errorf("as many as there may be: %v", err)
	}
	root = root.Push(solver.Layer{ID: fmt.Sprintf("%064x", 1001), Content: solver.Content{1}})
	many, ok := errors.AsType[*snapshot.TooManyLayersError](mountable(root))
	if !ok || many.Layers != snapshot.MaxLayers+1 || !strings.Contains(many.Error(), "COPY --from") {
		t.Errorf("one more: %v", many)
	}
}
