package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// Foreign is a layer that another store has, of which nothing is believed.
type Foreign struct {
	ID layer.ID
	// Content is the digest that the layer's entries must have.
	Content [32]byte
	// Manifest opens its manifest, and Tarball its tar, uncompressed. Reading them may fail as late as at the end. Manifest is nil for a layer
	// of an image, whose ID is its diff ID.
	Manifest, Tarball func(ctx context.Context) (io.ReadCloser, error)
	// Blob is the layer's blob in an encoding, once Tarball has ended, and Encoding its name.
	Blob     blob.Blob
	Encoding string
}

// ForeignError says that a layer is not what its ID and content say, or that its tar is another's. It wraps layer.ErrDamaged.
type ForeignError struct {
	ID  layer.ID
	Err error
}

func (e *ForeignError) Error() string { return fmt.Sprintf("layer %s is damaged: %v", e.ID, e.Err) }

// Retried reports that a build does not fail for it: the layer is made again.
func (e *ForeignError) Retried() bool { return true }

// Unwrap returns the cause.
func (e *ForeignError) Unwrap() []error { return []error{e.Err, layer.ErrDamaged} }

// Import commits a layer of another store, unless it is here. What does not match is a *ForeignError, and errors of opening and reading are
// returned as they are, wrapped.
func (j *Job) Import(ctx context.Context, f Foreign) error {
	if _, err := j.carried(ctx, f.ID); err == nil {
		return nil
	}
	if f.Manifest == nil {
		return j.read(ctx, f, func(tarball io.Reader) error {
			_, err := j.Unpack(ctx, f.ID, tarball, nil)
			return err
		})
	}
	p, err := j.New()
	if err != nil {
		return err
	}
	defer p.Close()
	if known, err := j.Manifest(ctx, f.ID); err == nil {
		f.Manifest = func(context.Context) (io.ReadCloser, error) { return readManifest(known), nil } // it is here already
	}
	m, err := j.store.receiveChecked(ctx, f, filepath.Join(p.dir, "manifest"))
	if err != nil {
		return err
	}
	defer m.Close()
	tarball, err := f.Tarball(ctx)
	if err != nil {
		return err
	}
	defer tarball.Close()
	source := &ctxio.Source{R: tarball}
	err = j.store.fs.Unpack(ctx, m, source, p.fs)
	if err == nil {
		_, err = io.Copy(io.Discard, ctxio.Reader(ctx, source)) // whether the bytes are those of the blob shows at the end
	}
	switch {
	case source.Err != nil:
		return source.Err
	case errors.Is(err, dir.ErrBlob):
		return &ForeignError{f.ID, err}
	case err != nil:
		return fmt.Errorf("unpack layer %s: %w", f.ID, err)
	}
	if f.Encoding != "" {
		if err := os.WriteFile(filepath.Join(p.dir, "blob."+f.Encoding), f.Blob.Note(), 0o600); err != nil {
			return err
		}
	}
	_, err = p.CommitWritten(ctx, m.Summary, f.ID)
	return err
}

// ImportEntries stores the manifest of a layer of another store, unless that of the layer is here. Errors are as those of Import.
func (j *Job) ImportEntries(ctx context.Context, f Foreign) error {
	_, absent := j.Manifest(ctx, f.ID)
	if absent == nil {
		return nil
	}
	if f.Manifest == nil {
		return j.read(ctx, f, func(tarball io.Reader) error { return j.Index(ctx, f.ID, tarball) })
	}
	s := j.store
	tmp, err := os.MkdirTemp(s.tmp, "index-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	name := filepath.Join(tmp, "manifest")
	m, err := s.receiveChecked(ctx, f, name)
	if err != nil {
		return err
	}
	if err := os.Rename(name, s.IndexPath(f.ID)); err != nil {
		return errors.Join(err, m.Close())
	}
	return j.hold(s.share(&opened{id: f.ID, manifest: m, form: EntriesOnly, absent: absent, refs: 1}))
}

// readManifest reads a manifest as it is in its file.
func readManifest(m *layer.Manifest) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		_, err := m.WriteTo(w)
		w.CloseWithError(err)
	}()
	return r
}

// read gives the tar of a layer of an image to a function that stores the layer, and compares the content then. What was stored is the layer
// with that diff ID, whatever is said of it.
func (j *Job) read(ctx context.Context, f Foreign, store func(tarball io.Reader) error) error {
	tarball, err := f.Tarball(ctx)
	if err != nil {
		return err
	}
	defer tarball.Close()
	source := &ctxio.Source{R: tarball}
	if err := store(source); err != nil {
		switch {
		case source.Err != nil:
			return source.Err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		return &ForeignError{f.ID, err}
	}
	m, err := j.Manifest(ctx, f.ID)
	if err == nil && m.Content != f.Content {
		err = &ForeignError{f.ID, errors.New("its content is another than the cache says")}
	}
	return err
}

// ReceiveManifest returns a manifest of another store, which may say anything that a manifest can say. The caller must close it. What is
// none is a *ForeignError of the layer id, and errors of opening and reading are returned as they are, wrapped.
func (j *Job) ReceiveManifest(
	ctx context.Context, id layer.ID, open func(context.Context) (io.ReadCloser, error),
) (*layer.Manifest, error) {
	tmp, err := os.MkdirTemp(j.store.tmp, "index-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	return j.store.receive(ctx, Foreign{ID: id, Manifest: open}, filepath.Join(tmp, "manifest"))
}

// receiveChecked writes the manifest of a layer of another store to a file, and returns it if it is that layer's.
func (s *Store) receiveChecked(ctx context.Context, f Foreign, name string) (*layer.Manifest, error) {
	m, err := s.receive(ctx, f, name)
	if err != nil {
		return nil, err
	}
	if layer.ID(fmt.Sprintf("%x", m.Identity)) != f.ID || m.Content != f.Content {
		m.Close()
		return nil, &ForeignError{f.ID, errors.New("its manifest is that of another layer")}
	}
	return m, nil
}

// receive writes the manifest that another store has for a layer to a file, and returns it.
func (s *Store) receive(ctx context.Context, f Foreign, name string) (*layer.Manifest, error) {
	r, err := f.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(file, ctxio.Reader(ctx, r))
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	m, err := layer.ReceiveManifest(name, s.limit)
	if err != nil {
		return nil, &ForeignError{f.ID, err}
	}
	return m, nil
}
