package trees

import (
	"bytes"
	"context"
	"fmt"
	"path"

	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
)

// maxIgnore bounds an ignore file in bytes.
const maxIgnore = 16 << 20

// Ignore reads an ignore file. The matcher is nil if it is not found, or excludes nothing.
func Ignore(ctx context.Context, tree layer.Tree, name string) (_ *ignore.Matcher, found bool, err error) {
	data, found, err := contexts.ReadTree(tree, name, maxIgnore)
	if err != nil || !found {
		return nil, false, err
	}
	m, err := ignore.Parse(ctx, bytes.NewReader(data))
	if err != nil {
		return nil, false, &input.Error{Err: fmt.Errorf("failed parsing %s: %w", name, err)}
	}
	if m != nil {
		m.File = path.Base(name)
	}
	return m, true, nil
}
