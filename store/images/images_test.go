package images

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/store"
)

// TestListEnds shows that what goes through all images ends with its context.
func TestListEnds(t *testing.T) {
	root, err := store.Open(context.Background(), t.TempDir(), &config.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for i := range 3 {
		desc, err := root.Images.Put("application/x", fmt.Append(nil, i))
		if err == nil {
			err = root.Images.Tag(fmt.Sprintf("image:%d", i), desc)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	set := New(root, registry.New(nil))
	if _, err := set.List(ctxtest.EndAfter(1)); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("List: %v", err)
	}
}
