package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/opencontainers/go-digest"
)

// Unpack reads the tar of an image's layer to EOF and commits it as id, unless that layer already exists. If tarball returns an
// error, also in its last Read, no layer is created. parent is the root file system that the layer was made on, or nil: then
// directories that the tar does not contain are marked Implied.
func (j *Job) Unpack(ctx context.Context, id layer.ID, tarball io.Reader, parent layer.Tree) (Committed, error) {
	if o, err := j.carried(ctx, id); err == nil {
		return Committed{ID: id, Summary: o.manifest.Summary}, nil
	}
	p, err := j.New()
	if err != nil {
		return Committed{}, err
	}
	defer p.Close()
	b := compose.New(parent, j.store.tmp, time.Unix(0, 0), p.Writer())
	defer b.Close()
	if err := b.Unpack(ctx, tarball, j.store.limit); err != nil {
		return Committed{}, fmt.Errorf("unpack the layer: %w", err)
	}
	if err := b.Finish(); err != nil {
		return Committed{}, fmt.Errorf("unpack the layer: %w", err)
	}
	return p.Commit(ctx, b, id)
}

// Index reads the tar of an image's layer to EOF and stores only its entries: the layer then has a manifest but no carriers. The job
// keeps the manifest, even if the stored one is removed. Index does nothing if the layer already has a manifest. Errors are handled as in
// Unpack.
func (j *Job) Index(ctx context.Context, id layer.ID, tarball io.Reader) error {
	_, absent := j.Manifest(ctx, id)
	if absent == nil {
		return nil
	}
	s := j.store
	b := compose.New(nil, s.tmp, time.Unix(0, 0), nil)
	defer b.Close()
	if err := b.Unpack(ctx, tarball, s.limit); err != nil {
		return fmt.Errorf("read the layer: %w", err)
	}
	m, err := s.keepEntries(ctx, id, b)
	if err != nil {
		return fmt.Errorf("store the layer's entries: %w", err)
	}
	return j.hold(s.share(&opened{id: id, manifest: m, form: EntriesOnly, absent: absent, refs: 1}))
}

// keepEntries stores the manifest of a layer. It is opened before it gets its name, under which others may remove it.
func (s *Store) keepEntries(ctx context.Context, id layer.ID, b *compose.Builder) (*layer.Manifest, error) {
	tmp, err := os.MkdirTemp(s.tmp, "index-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	name := filepath.Join(tmp, "manifest")
	w, err := layer.NewWriter(name)
	if err != nil {
		return nil, err
	}
	if err := b.Entries(until(ctx, w.Add)); err != nil {
		w.Abort()
		return nil, err
	}
	if _, err := w.Close(time.Now()); err != nil {
		return nil, err
	}
	m, err := layer.OpenManifest(name)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(name, s.IndexPath(id)); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// Made returns layers that steps have made, by the diff IDs of the layers of images that they became, as far as they are in the store. They
// have the same entries, and need not be unpacked. They stay until the end of the job.
func (j *Job) Made(ctx context.Context, diffIDs []digest.Digest) (map[digest.Digest]layer.ID, error) {
	found := map[digest.Digest]layer.ID{}
	if len(diffIDs) == 0 {
		return found, nil
	}
	ids, err := j.store.IDs()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		for _, d := range blob.DiffIDs(j.store.Path(id)) {
			if _, has := found[d]; has || !slices.Contains(diffIDs, d) {
				continue
			}
			if j.Open(ctx, id) == nil {
				found[d] = id
			}
		}
		if err := ctxio.Ended(ctx); err != nil {
			return nil, err
		}
	}
	return found, nil
}
