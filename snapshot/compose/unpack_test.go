package compose

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"io/fs"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
)

// below is a tree that has one directory, d.
type below struct{ made time.Time }

func (b below) Lookup(path string) (layer.Entry, bool, error) {
	return layer.Entry{Path: path, Type: layer.Dir, Mode: 0o700, ModTime: b.made}, path == "" || path == "d", nil
}

func (below) List(string) ([]layer.Entry, error)        { return nil, nil }
func (below) Sum(context.Context, []*layer.Entry) error { return nil }
func (below) Open(*layer.Entry) (io.ReadCloser, error)  { return nil, fs.ErrNotExist }

// A directory that an image's layer does not describe is that of the layer below, with its time. A step that copies it was planned with
// that one, and would else find that it has changed.
func TestUnpackKeepsTime(t *testing.T) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "d/e/f", Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	made := time.Unix(1e9, 0)
	b := New(below{made}, t.TempDir(), time.Now(), nil)
	defer b.Close()
	if err := b.Unpack(t.Context(), &archive, layer.Limit{}); err != nil {
		t.Fatal(err)
	}
	e, ok, err := b.Lookup("d")
	if err != nil || !ok || e.Clock || !e.ModTime.Equal(made) || e.Mode != 0o700 {
		t.Errorf("d is %+v, %v, %v", e, ok, err)
	}
}
