package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/internal/rootfs"
)

// ErrBlob is returned if a tar does not match the manifest of its layer.
var ErrBlob = errors.New("the layer's blob does not match its files")

// Unpack writes the files of a layer to an empty directory. The entries come from the manifest; only the bytes come from the
// layer's tar, and they are compared with the manifest. The error wraps ErrBlob if they differ or cannot be read, and
// *os.PathError if a file cannot be written.
func (f *FS) Unpack(ctx context.Context, m *layer.Manifest, tarball io.Reader, to *rootfs.Root) error {
	w := f.NewWriter(to)
	defer w.Close()
	r := layer.NewReader(ctxio.Reader(ctx, tarball), layer.Limit{Size: math.MaxInt64, Entries: math.MaxInt}) // the manifest is the limit
	r.Ahead()
	defer r.Close()
	return w.all(ctx, m, func(e *layer.Entry) error { return w.unpack(e, r) })
}

// all writes the entries of a manifest, and then sets the times of its directories.
func (d *Writer) all(ctx context.Context, m *layer.Manifest, write func(e *layer.Entry) error) error {
	for e := range m.All() {
		err := write(e)
		if ended := ctxio.Ended(ctx); ended != nil {
			return ended // takes precedence over read errors that it caused
		}
		if err != nil {
			return err
		}
	}
	for e := range m.All() {
		if e.Type != layer.Dir {
			continue
		}
		if err := d.SetTime(e); err != nil {
			return err
		}
	}
	return nil
}

// unpack writes an entry, taking its bytes from the next files in the tar.
func (d *Writer) unpack(e *layer.Entry, r *layer.Reader) error {
	made := *e
	if e.Type != layer.File {
		return d.Put(&made, nil)
	}
	var body io.Reader = bytes.NewReader(nil)
	for e.Size > 0 {
		next, err := r.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: /%s is missing", ErrBlob, e.Path)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrBlob, err)
		}
		if next.Path == e.Path {
			body = r
			break
		}
	}
	if err := d.Put(&made, body); err != nil {
		if _, disk := errors.AsType[*layer.FileError](err); disk {
			return err
		}
		return fmt.Errorf("%w: /%s: %w", ErrBlob, e.Path, err)
	}
	if made.Digest != e.Digest {
		return fmt.Errorf("%w: /%s differs", ErrBlob, e.Path)
	}
	return nil
}

// Rewrite writes the files of a layer to an empty directory: the entries come from the manifest, the bytes from the directory
// from. The error wraps mount.ErrInUse if the bytes of a file do not match the manifest.
func (f *FS) Rewrite(ctx context.Context, m *layer.Manifest, from, to *rootfs.Root) error {
	in, out := f.NewWriter(from), f.NewWriter(to)
	defer in.Close()
	defer out.Close()
	return out.all(ctx, m, func(e *layer.Entry) error { return out.take(ctx, in, e) })
}

func (d *Writer) take(ctx context.Context, from *Writer, e *layer.Entry) error {
	made := *e
	if e.Type != layer.File {
		return d.Put(&made, nil)
	}
	dir, err := from.parent(e.Path)
	if err != nil {
		return err
	}
	fd, err := openFile(dir.fd(), e.Name())
	if err != nil {
		return &layer.FileError{Op: "open", Path: e.Path, Err: err}
	}
	f := os.NewFile(uintptr(fd), e.Path)
	defer f.Close()
	if err := d.Put(&made, ctxio.Reader(ctx, f)); err != nil {
		return err
	}
	if made.Digest != e.Digest {
		return fmt.Errorf("/%s was changed after the step: %w", layer.Clip(e.Path), mount.ErrInUse)
	}
	return nil
}
