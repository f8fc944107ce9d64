package contexts

import (
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// ErrNoDir is the error for a path at which there is no directory.
var ErrNoDir = errors.New("there is no such directory")

// Subdir returns a directory of a tree as a tree of its own. Links are followed in the tree.
func Subdir(tree layer.Tree, dir string) (layer.Tree, error) {
	path, e, err := compose.Resolve(tree.Lookup, dir, true)
	if err == nil && (e == nil || e.Type != layer.Dir) && path != "" {
		err = ErrNoDir
	}
	if err != nil {
		return nil, err
	}
	return layer.Below(tree, path), nil
}

// subdir returns the directory of a context that counts. That there is none is an *input.Error.
func subdir(tree layer.Tree, dir string) (layer.Tree, error) {
	tree, err := Subdir(tree, dir)
	if err != nil {
		return nil, &input.Error{Err: fmt.Errorf("use the directory %s of the context: %w", layer.Clip(dir), err)}
	}
	return tree, nil
}
