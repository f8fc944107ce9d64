package files

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"

	"github.com/kilnbuild/kiln/internal/layer"
)

// inlineTree is the tree of a single file, such as a heredoc. Only Sum and Open are used.
type inlineTree struct{ content []byte }

func (t inlineTree) Lookup(string) (layer.Entry, bool, error) { return layer.Entry{}, false, nil }
func (t inlineTree) List(string) ([]layer.Entry, error)       { return nil, nil }

func (t inlineTree) Sum(_ context.Context, entries []*layer.Entry) error {
	for _, e := range entries {
		e.Digest = sha256.Sum256(t.content)
	}
	return nil
}

func (t inlineTree) Open(*layer.Entry) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(t.content)), nil
}
