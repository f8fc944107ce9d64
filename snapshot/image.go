package snapshot

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// Unpack reads the tar of an image's layer to its end and commits it under id, unless it exists already; an error of tarball, also in its
// last Read, leaves nothing. parent is the root file system that the layer was made over, or nil: without it directories that the tar does
// not name itself are marked Implied.
func (s *Store) Unpack(ctx context.Context, id string, tarball io.Reader, parent layer.Tree) (Committed, error) {
	if m, err := s.Manifest(id); err == nil {
		return Committed{ID: id, Summary: m.Summary}, nil
	}
	p, err := s.New()
	if err != nil {
		return Committed{}, err
	}
	defer p.Close()
	b := compose.New(parent, s.tmp, time.Unix(0, 0), p.Writer())
	defer b.Close()
	if err := b.Unpack(ctx, tarball, s.Limit); err != nil {
		return Committed{}, fmt.Errorf("unpack the layer: %w", err)
	}
	if err := b.Finish(); err != nil {
		return Committed{}, fmt.Errorf("unpack the layer: %w", err)
	}
	return p.Commit(b, id)
}

// Index reads the tar of an image's layer to its end and keeps its entries alone: a Stack can tell what is in the layer, but not open its
// files. It does nothing for a layer that exists, or that was indexed before. What Unpack says of errors holds here as well.
func (s *Store) Index(ctx context.Context, id string, tarball io.Reader) error {
	if _, err := s.entries(id); err == nil {
		return nil
	}
	b := compose.New(nil, s.tmp, time.Unix(0, 0), nil)
	defer b.Close()
	if err := b.Unpack(ctx, tarball, s.Limit); err != nil {
		return fmt.Errorf("read the layer: %w", err)
	}
	tmp, err := os.MkdirTemp(s.tmp, "index-")
	if err != nil {
		return fmt.Errorf("keep the layer's entries: %w", err)
	}
	defer os.RemoveAll(tmp)
	name := filepath.Join(tmp, "manifest")
	w, err := layer.NewWriter(name)
	if err != nil {
		return fmt.Errorf("keep the layer's entries: %w", err)
	}
	if err := b.Entries(until(ctx, w.Add)); err != nil {
		w.Abort()
		return fmt.Errorf("keep the layer's entries: %w", err)
	}
	if _, err := w.Close(time.Now()); err != nil {
		return fmt.Errorf("keep the layer's entries: %w", err)
	}
	if err := os.Rename(name, s.indexPath(id)); err != nil {
		return fmt.Errorf("keep the layer's entries: %w", err)
	}
	return nil
}
