package registry

import (
	"context"
	"errors"
	"io"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/registry/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Stream opens one blob for reading, from the store if it is there, else from the source; then it is put into the store on
// the way, and is there once the reader has ended with io.EOF. That it does only if the bytes are desc's. Of several
// processes and goroutines that want the same blob one fetches it, and the others wait for that one's Close.
func Stream(ctx context.Context, src image.Fetcher, ref string, desc ocispec.Descriptor, store *cas.Store) (_ io.ReadCloser, err error) {
	d, err := cas.ParseDigest(string(desc.Digest))
	if err != nil {
		return nil, err
	}
	if store.Has(desc) {
		return store.Open(desc)
	}
	s := &stream{desc: desc}
	if s.lock, err = lock.Acquire(ctx, filepath.Join(store.Root(), rootdir.Locks, "blob-"+d.Encoded()), false); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if store.Has(desc) {
		if err := s.Close(); err != nil {
			return nil, err
		}
		return store.Open(desc)
	}
	if s.blob, err = store.CreateVerified(ctx, d); err != nil {
		return nil, err
	}
	if s.from, err = src.Fetch(ctx, ref, desc); err != nil {
		return nil, err
	}
	return s, nil
}

type stream struct {
	desc ocispec.Descriptor
	lock *lock.Lock
	blob *cas.Writer
	from io.ReadCloser
	end  error // what the last Read returned, io.EOF after the commit
}

func (s *stream) Read(p []byte) (int, error) {
	if s.end != nil {
		return 0, s.end
	}
	n, err := s.from.Read(p)
	if n > 0 {
		if _, werr := s.blob.Write(p[:n]); werr != nil {
			err = werr
		}
	}
	if err == io.EOF {
		if _, cerr := s.blob.Commit(s.desc.Digest, s.desc.Size); cerr != nil {
			err = cerr
		}
	}
	s.end = err
	return n, err
}

// Close ends the reading; a blob that was not read to its end is not put into the store.
func (s *stream) Close() error {
	var err error
	if s.from != nil {
		err = s.from.Close()
	}
	if s.blob != nil {
		err = errors.Join(err, s.blob.Close())
	}
	return errors.Join(err, s.lock.Remove())
}
