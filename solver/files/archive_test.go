package files

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// nested is a tree of directories called d in each other, depth of them, that counts the bytes of the paths which are looked up.
// Beyond room of them it fails, so that what would take hours is over soon.
type nested struct {
	depth, room, used int
}

var errLookups = errors.New("too many paths were looked up")

func (n *nested) Lookup(path string) (layer.Entry, bool, error) {
	if n.used += len(path); n.used > n.room {
		return layer.Entry{}, false, errLookups
	}
	levels := (len(path) + 1) / 2
	if path == "" || levels <= n.depth && path == strings.Repeat("d/", levels)[:len(path)] {
		return layer.Entry{Path: path, Type: layer.Dir, Mode: 0o755}, true, nil
	}
	return layer.Entry{}, false, nil
}

func (n *nested) List(string) ([]layer.Entry, error)        { return nil, nil }
func (n *nested) Sum(context.Context, []*layer.Entry) error { return nil }
func (n *nested) Open(*layer.Entry) (io.ReadCloser, error)  { return nil, fs.ErrNotExist }
func unpackOver(t *testing.T, below layer.Tree, data []byte) error {
	t.Helper()
	b := compose.New(below, t.TempDir(), time.Unix(0, 0), nil)
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	r := &run{ctx: ctx, b: b, sink: dirSink{}}
	c := &copying{maker: maker{run: r}, op: &llb.Copy{Dest: "/"}}
	archive, ok := OpenArchive(bytes.NewReader(data), layer.Limit{})
	if !ok {
		t.Fatal("it is no archive")
	}
	return c.unpack(archive.Reader, "")
}

// The work of unpacking is linear in the bytes of the members' names, whatever lies below: what the archive has beside it, and how deep.
func TestUnpackLooksUpLittle(t *testing.T) {
	const depth = 2000
	for name, tt := range map[string]struct {
		below int // how many of the directories are there already
		make  func(w *tar.Writer, bytes *int) error
	}{
		"directories": {0, nestDirs}, "directories that are there": {depth, nestDirs}, "half of them are there": {depth / 2, nestDirs},
		"files at the bottom": {depth, func(w *tar.Writer, bytes *int) error {
			for i := range 300 {
				h := tar.Header{Name: strings.Repeat("d/", depth) + fmt.Sprint(i), Mode: 0o644}
				*bytes += len(h.Name)
				if err := w.WriteHeader(&h); err != nil {
					return err
				}
			}
			return nil
		}},
		"links": {depth, func(w *tar.Writer, bytes *int) error {
			for i := range 300 {
				h := tar.Header{Name: strings.Repeat("d/", i) + "l", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("d/", depth-i)}
				*bytes += len(h.Name) + len(h.Linkname)
				if err := w.WriteHeader(&h); err != nil {
					return err
				}
				h = tar.Header{Name: strings.Repeat("d/", i) + "l/" + fmt.Sprint(i), Mode: 0o644}
				*bytes += len(h.Name) + 2*depth
				if err := w.WriteHeader(&h); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var data bytes.Buffer
			w := tar.NewWriter(&data)
			names := 0
			if err := errors.Join(tt.make(w, &names), w.Close()); err != nil {
				t.Fatal(err)
			}
			below := &nested{depth: tt.below, room: 10 * (names + depth*depth)}
			if err := unpackOver(t, below, data.Bytes()); err != nil {
				t.Errorf("%d bytes of names: %v", names, err)
			}
		})
	}
}

func nestDirs(w *tar.Writer, bytes *int) error {
	for i := range 2000 {
		h := tar.Header{Name: strings.Repeat("d/", i+1), Typeflag: tar.TypeDir, Mode: 0o755}
		*bytes += len(h.Name)
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
	}
	return nil
}
