package snapshot

import (
	"io"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// files reads the files of one layer. Reading a file that was modified returns a *DamagedError and discards the layer.
type files struct {
	*dir.Files
	store *Store
}

// Open implements layer.Files.
func (f files) Open(e *layer.Entry) (io.ReadCloser, error) {
	r, err := f.Files.Open(e)
	if err != nil {
		return nil, f.store.giveUp(err)
	}
	return &reader{r, f.store}, nil
}

// Copy implements layer.Files.
func (f files) Copy(w io.Writer, e *layer.Entry) error { return f.store.giveUp(f.Files.Copy(w, e)) }

// reader discards the layer if a read finds its file damaged.
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
