package files

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// sink receives the layer that a run makes.
type sink interface {
	// add receives the layer's next entry, in the order of layer.Compare, and the origin of a file.
	add(e *layer.Entry, from origin) error
	// bodies reports whether the builder writes files as they arrive, and origins whether add receives their origins.
	bodies() bool
	origins() bool
}

// Told returns err, the error of a Change. If a context was modified during the build, it notifies the context.
func (c Change) Told(err error) error {
	if _, ok := errors.AsType[*layer.ChangedError](err); !ok {
		return err
	}
	for _, in := range c.Inputs {
		if d, ok := in.Tree.(interface{ Changed() }); ok && in.Local {
			d.Changed()
		}
	}
	return err
}

// Digest computes the result of a Change without writing anything, and without reading files whose digests are known.
func Digest(ctx context.Context, c Change) (Result, error) {
	s := digestSink{layer.NewDigester()}
	r, err := newRun(ctx, c, s)
	if err != nil {
		return Result{}, err
	}
	r.b = compose.New(r.trees[0], c.Tmp, r.now(), nil)
	defer r.b.Close()
	r.b.Trim()
	if err := r.all(); err != nil {
		return Result{}, err
	}
	r.result.Summary = s.Sum()
	return r.result, nil
}

type digestSink struct{ *layer.Digester }

func (s digestSink) add(e *layer.Entry, _ origin) error { return s.Add(e) }

func (s digestSink) bodies() bool { return false }

func (s digestSink) origins() bool { return false }

// Write makes the layer of a Change in the root directory, for the caller to commit or close. Files that are unchanged since the
// layer last, if not "", are shared with it: by making a delta of it if possible, and otherwise by hard links.
func Write(ctx context.Context, c Change, job *snapshot.Job, last layer.ID) (*snapshot.Pending, Result, error) {
	delta := !Unpacks(c.Op)
	for {
		p, err := job.New()
		if err != nil {
			return nil, Result{}, err
		}
		result, err := write(ctx, c, p, last, delta)
		if err == nil {
			return p, result, nil
		}
		p.Close()
		if !delta || !errors.Is(err, dir.ErrNoDelta) {
			return nil, Result{}, err
		}
		delta = false
	}
}

func write(ctx context.Context, c Change, p *snapshot.Pending, last layer.ID, delta bool) (Result, error) {
	manifest, err := p.Manifest()
	if err != nil {
		return Result{}, err
	}
	r, err := newRun(ctx, c, dirSink{manifest})
	if err == nil {
		p.Reuse(ctx, last)
		if delta {
			p.Delta(ctx, last)
		}
		r.b = compose.New(r.trees[0], c.Tmp, r.now(), p.Writer())
		defer r.b.Close()
		r.b.Trim()
		err = r.all()
	}
	if err != nil {
		manifest.Abort()
		return Result{}, err
	}
	r.result.Summary, err = manifest.Close(time.Now())
	return r.result, err
}

type dirSink struct{ manifest *layer.Writer }

func (s dirSink) add(e *layer.Entry, _ origin) error { return s.manifest.Add(e) }

func (s dirSink) bodies() bool { return true }

func (s dirSink) origins() bool { return false }

// WriteTar writes the tar of a Change's layer to w, and its entries to manifest. The Change must not unpack archives.
func WriteTar(ctx context.Context, c Change, w io.Writer, manifest *layer.Writer) error {
	s := &tarSink{ctx: ctx, manifest: manifest}
	r, err := newRun(ctx, c, s)
	if err != nil {
		return err
	}
	r.b = compose.New(r.trees[0], c.Tmp, r.now(), nil)
	defer r.b.Close()
	r.b.Trim()
	var all error
	err = layer.WriteLayer(w, func(yield func(*layer.Entry, layer.Body) bool) {
		s.yield = yield
		all = r.all()
	})
	if err == nil || all != nil && !errors.Is(all, errStopped) {
		err = all
	}
	return err
}

type tarSink struct {
	ctx      context.Context
	manifest *layer.Writer
	yield    func(*layer.Entry, layer.Body) bool
}

func (s *tarSink) add(e *layer.Entry, from origin) error {
	if err := s.manifest.Add(e); err != nil {
		return err
	}
	kept := *e // the tar writer reads several entries ahead
	if !s.yield(&kept, func(w io.Writer) error { return from.write(s.ctx, w, &kept) }) {
		return errStopped
	}
	return nil
}

func (s *tarSink) bodies() bool { return false }

func (s *tarSink) origins() bool { return true }

var errStopped = errors.New("the tar could not be written")

// Same reports whether the result of a Change is as planned, so that no context was modified meanwhile. The contents of archives
// are not known before they are unpacked: if unpacks is set they are not compared.
func (r Result) Same(planned Result, unpacks bool) bool {
	return slices.Equal(r.Archives, planned.Archives) && slices.Equal(r.Copied, planned.Copied) && (unpacks || r.Content == planned.Content)
}

// origin is the source of a file.
type origin struct {
	tree layer.Tree
	path string
}

// originID returns the LinkID that represents an origin in the entries of a layer: the number of its tree, and its path.
func originID(tree int, path string) string { return strconv.Itoa(tree) + " " + path }

// origin returns the origin represented by an originID, or the zero origin for "".
func (r *run) origin(id string) (origin, error) {
	if id == "" {
		return origin{}, nil
	}
	number, path, _ := strings.Cut(id, " ")
	n, err := strconv.Atoi(number)
	switch {
	case err != nil || n < 0 || n >= len(r.trees)+len(r.inline):
		return origin{}, fmt.Errorf("BUG: %q is not an origin", id)
	case n < len(r.trees):
		return origin{r.trees[n], path}, nil
	}
	return origin{r.inline[n-len(r.trees)], path}, nil
}

// write writes the bytes of a file whose entry is e. It fails if they are not as planned; the bytes written to w by then are
// wrong.
func (from origin) write(ctx context.Context, w io.Writer, e *layer.Entry) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if from.tree == nil {
		return fmt.Errorf("BUG: %q has no origin", e.Path)
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
			return &layer.ChangedError{Path: from.path}
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
		return &layer.ChangedError{Path: from.path}
	}
	return nil
}
