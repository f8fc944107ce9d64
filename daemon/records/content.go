package records

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Content returns the blobs of the records as a containerd content store that nothing can be written to.
func (r *Records) Content() content.Store { return blobStore{r} }

// blobStore implements content.Store.
type blobStore struct{ records *Records }

// find returns the record that has a blob, and where it is there.
func (s blobStore) find(d digest.Digest) (*entry, blob, error) {
	s.records.mu.Lock()
	defer s.records.mu.Unlock()
	for range 2 {
		for _, e := range s.records.index {
			if b, ok := e.blobs[d]; ok {
				return e, b, nil
			}
		}
		s.records.refresh()
	}
	return nil, blob{}, fmt.Errorf("content %v: %w", d, cerrdefs.ErrNotFound)
}

// Info implements content.InfoProvider.
func (s blobStore) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	_, b, err := s.find(d)
	return content.Info{Digest: d, Size: b.Size}, err
}

// Walk implements content.Manager.
func (s blobStore) Walk(ctx context.Context, f content.WalkFunc, wanted ...string) error {
	if err := checkFilters(wanted); err != nil {
		return fmt.Errorf("%w: %w", err, cerrdefs.ErrInvalidArgument)
	}
	filter, err := filters.ParseAll(wanted...)
	if err != nil {
		return fmt.Errorf("%w: %w", err, cerrdefs.ErrInvalidArgument)
	}
	all := map[digest.Digest]int64{}
	s.records.mu.Lock()
	s.records.refresh()
	for _, e := range s.records.index {
		for d, b := range e.blobs {
			all[d] = b.Size
		}
	}
	s.records.mu.Unlock()
	for d, size := range all {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		info := content.Info{Digest: d, Size: size}
		if filter.Match(content.AdaptInfo(info)) {
			if err := f(info); err != nil {
				return err
			}
		}
	}
	return nil
}

// ReaderAt implements content.Provider.
func (s blobStore) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	e, b, err := s.find(desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := s.records.history.OpenRecord(e.id)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("content %v: %w", desc.Digest, cerrdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return &blobReader{io.NewSectionReader(f, b.Offset, b.Size), f}, nil
}

// blobReader reads a blob.
type blobReader struct {
	*io.SectionReader
	io.Closer
}

// errReadOnly is the error of everything that would write.
var errReadOnly = fmt.Errorf("the content store is read-only: %w", cerrdefs.ErrPermissionDenied)

// Update implements content.Manager.
func (s blobStore) Update(context.Context, content.Info, ...string) (content.Info, error) {
	return content.Info{}, errReadOnly
}

// Delete implements content.Manager.
func (s blobStore) Delete(context.Context, digest.Digest) error { return errReadOnly }

// Writer implements content.Ingester.
func (s blobStore) Writer(context.Context, ...content.WriterOpt) (content.Writer, error) {
	return nil, errReadOnly
}

// Abort implements content.IngestManager.
func (s blobStore) Abort(context.Context, string) error { return errReadOnly }

// Status implements content.IngestManager: nothing is being written.
func (s blobStore) Status(_ context.Context, ref string) (content.Status, error) {
	return content.Status{}, fmt.Errorf("ingest %q: %w", ref, cerrdefs.ErrNotFound)
}

// ListStatuses implements content.IngestManager.
func (s blobStore) ListStatuses(context.Context, ...string) ([]content.Status, error) {
	return nil, nil
}
