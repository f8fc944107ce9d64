package snapshot

import (
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// Files reads the files of one committed layer. It implements layer.Files. A file that is not what it was when the layer was made is a
// *DamagedError, and the layer is given up.
type Files struct {
	*dir.Files
	store *Store
}

// Files returns the files of a layer, which stay open for the life of the store.
func (s *Store) Files(id string) (*Files, error) {
	m, err := s.Manifest(id)
	if err != nil {
		return nil, err
	}
	return s.filesWith(id, m)
}

// filesWith is Files of a layer with this manifest.
func (s *Store) filesWith(id string, m *layer.Manifest) (*Files, error) {
	id, err := s.unpacked(id)
	if err != nil {
		return nil, err
	}
	files, err := s.filesOf(id, m)
	if err != nil {
		return nil, err
	}
	return &Files{Files: files, store: s}, nil
}

// Open implements layer.Files.
func (f *Files) Open(e *layer.Entry) (io.ReadCloser, error) {
	r, err := f.Files.Open(e)
	if err != nil {
		return nil, f.store.giveUp(err)
	}
	return &reader{r, f.store}, nil
}

// Copy is dir.Files's.
func (f *Files) Copy(w io.Writer, e *layer.Entry) error { return f.store.giveUp(f.Files.Copy(w, e)) }

// Tar is dir.Files's.
func (f *Files) Tar(m *layer.Manifest) iter.Seq2[*layer.Entry, layer.Body] { return dir.Tar(m, f.Copy) }

// reader gives a layer up of which a file is damaged.
type reader struct {
	io.ReadCloser
	store *Store
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = r.store.giveUp(err)
	}
	return n, err
}

// DamagedError is the error of reading a file of a layer that is not what it was when the layer was made.
type DamagedError = dir.DamagedError

// giveUp gives a layer up if err is a *DamagedError of it, so that the next build makes it again, and returns the error. The files stay
// until then, since steps that run may have them mounted.
func (s *Store) giveUp(err error) error {
	damaged, ok := errors.AsType[*DamagedError](err)
	if !ok {
		return err
	}
	s.mu.Lock()
	delete(s.manifests, damaged.ID)
	for other, m := range s.manifests {
		if s.baseOf(other, m) == damaged.ID {
			delete(s.manifests, other)
		}
	}
	clear(s.files)
	clear(s.opened) // readers may still use them, so they are left to the end of the process
	s.mu.Unlock()
	if rm := os.Remove(filepath.Join(s.dir, damaged.ID, "manifest")); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
		return errors.Join(err, rm)
	}
	return err
}
