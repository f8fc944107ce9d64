package ops

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
)

// packLayer does what was planned without writing the files: their bytes go from where they are into the layer's tar, and the
// layer is committed once its blob is complete.
func (r *Runner) packLayer(ctx context.Context, f *filing, planned layer.Summary, job solver.Job) (solver.Layer, error) {
	id := hex.EncodeToString(planned.Identity[:])
	r.Snapshots.SetEarlier(id, job.Last.ID)
	if m, err := r.Snapshots.Manifest(id); err == nil {
		return committed(snapshot.Committed{ID: id, Summary: m.Summary}), nil
	}
	p, err := r.Snapshots.New()
	if err != nil {
		return solver.Layer{}, err
	}
	defer p.Close()
	manifest, err := p.Manifest()
	if err != nil {
		return solver.Layer{}, err
	}
	var written layer.Summary
	note, data, err := r.pack(ctx, id, func(w io.Writer) error {
		if err := f.tar(w, manifest.Add); err != nil {
			manifest.Abort()
			return err
		}
		var err error
		if written, err = manifest.Close(time.Now()); err == nil && written.Identity != planned.Identity {
			err = errChanged
		}
		return err
	})
	if err != nil {
		return solver.Layer{}, err
	}
	if err := p.Pack(note, data); err != nil {
		return solver.Layer{}, err
	}
	l, err := p.CommitWritten(written, "")
	return committed(l), err
}

// tar writes the layer's tar to w and gives its entries to add.
func (f *filing) tar(w io.Writer, add func(*layer.Entry) error) error {
	f.b = f.store.NewBuilder(f.trees[0], nil, f.now())
	f.b.Trim()
	defer f.b.Close()
	f.writing, f.streaming, f.from = false, false, map[string]origin{}
	defer func() { f.from = nil }()
	var all error
	entries := func(yield func(*layer.Entry, layer.Body) bool) {
		f.emit = func(e *layer.Entry) error {
			if err := add(e); err != nil {
				return err
			}
			from, kept := f.from[e.Path], *e // several entries are read ahead
			if !yield(&kept, func(w io.Writer) error { return from.write(f.ctx, w, &kept) }) {
				return errStopped
			}
			return nil
		}
		all = f.all()
	}
	err := layer.WriteTar(w, entries)
	if err == nil || all != nil && !errors.Is(all, errStopped) {
		err = all
	}
	return err
}

var (
	errStopped = errors.New("the tar could not be written")
	errChanged = errors.New("the files changed while they were copied: build again when nothing writes to them")
)

// origin is where a file comes from.
type origin struct {
	tree layer.Tree
	path string
}

// write writes the bytes of a file whose entry is e. It fails if they are not those that were planned: what w got by then is wrong.
func (from origin) write(ctx context.Context, w io.Writer, e *layer.Entry) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if from.tree == nil {
		return fmt.Errorf("BUG: nobody knows where %q comes from", e.Path)
	}
	f, err := from.tree.Open(&layer.Entry{Path: from.path, Type: layer.File})
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, min(256<<10, e.Size+1))
	h := sha256.New()
	for rest := e.Size; ; {
		n, err := f.Read(buf)
		if rest -= int64(n); rest < 0 || err == io.EOF && rest > 0 {
			return changed(from)
		}
		h.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if layer.Digest(h.Sum(nil)) != e.Digest {
		return changed(from)
	}
	return nil
}

func changed(from origin) error {
	return fmt.Errorf("%s changed while it was copied: build again when nothing writes to it", layer.Clip(from.path))
}
