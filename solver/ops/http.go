package ops

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	digest "github.com/opencontainers/go-digest"
)

// httpClient returns the client of ADD from http and https.
func (r *Runner) httpClient() *httpsource.Client {
	c := httpsource.New(filepath.Join(r.Root, "http"), r.Tmp, r.secret)
	c.Limit = r.Limit
	return c
}

func (r *Runner) secret(id string) ([]byte, bool, error) {
	if r.Secrets == nil {
		return nil, false, nil
	}
	return r.Secrets.Secret(id)
}

// planHTTP plans the fetching of a file. The server is asked here whether the file has changed, and one that has comes
// down at once, since its digest is the key. It only becomes a layer when no layer is known to hold it.
func (r *Runner) planHTTP(ctx context.Context, v *llb.Vertex, op llb.HTTP) (solver.Step, error) {
	client := r.httpClient()
	var report func(current int64, done bool)
	task := events.From(ctx)
	req := httpsource.Request{HTTP: remoteurl.HTTP{URL: op.URL, User: op.User}, Checksum: digest.Digest(op.Checksum), Received: func(bytes, total int64) {
		if report == nil {
			report = task.Transferring(op.Filename, total)
		}
		report(bytes, false)
	}}
	f, err := client.Look(ctx, req)
	if err != nil {
		return solver.Step{}, err
	}
	if report != nil {
		report(f.Size, true)
	}
	modified := time.Unix(0, 0)
	inputs := append(common(v), solver.Input{Name: "digest", Value: f.Digest.String()}, solver.Input{Name: "name", Value: op.Filename})
	if !f.Modified.IsZero() {
		modified = f.Modified
		inputs = append(inputs, solver.Input{Name: "last modified", Value: modified.UTC().Format(time.RFC3339)})
	}
	file := f.Path
	return solver.Step{
		Inputs: inputs,
		Run: func(ctx context.Context, job solver.Job) (solver.Layer, error) {
			if file == "" {
				// It has not changed, and the layer that held it is gone, or not wanted.
				again, err := client.Get(ctx, req)
				if err != nil {
					return solver.Layer{}, err
				}
				file = again.Path
				if again.Digest != f.Digest {
					return solver.Layer{}, fmt.Errorf("download %s: the file changed while the build looked at it: build again", remoteurl.Shown(op.URL))
				}
			}
			fmt.Fprintf(job.Stderr, "downloaded %d bytes, %s\n", f.Size, f.Digest)
			body, err := os.Open(file)
			if err != nil {
				return solver.Layer{}, err
			}
			defer body.Close()
			e := layer.Entry{Path: op.Filename, Type: layer.File, Mode: 0o600, Size: f.Size, ModTime: modified}
			return r.fill(ctx, func(put func(layer.Entry, io.Reader) error) error { return put(e, body) })
		},
		Close: func() {
			if file != "" {
				os.Remove(file)
			}
		},
	}, nil
}

// File makes a root file system of one file, mode 0600 and owned by root, whose bytes are those of body.
func (r *Runner) File(ctx context.Context, name string, body io.Reader) (*solver.Chain, error) {
	l, err := r.fill(ctx, func(put func(layer.Entry, io.Reader) error) error {
		return put(layer.Entry{Path: name, Type: layer.File, Mode: 0o600, ModTime: time.Unix(0, 0)}, body)
	})
	var root *solver.Chain
	return root.Push(l), err
}

// fill makes a layer over nothing of the entries that source gives to put, until ctx ends.
func (r *Runner) fill(ctx context.Context, source func(put func(layer.Entry, io.Reader) error) error) (solver.Layer, error) {
	p, err := r.Snapshots.New()
	if err != nil {
		return solver.Layer{}, err
	}
	defer p.Close()
	b := r.Snapshots.NewBuilder(inlineTree{}, p, time.Unix(0, 0))
	defer b.Close()
	put := func(e layer.Entry, body io.Reader) error {
		if body != nil {
			body = ctxio.Reader(ctx, body)
		}
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		return b.Put(e, body)
	}
	if err := source(put); err != nil {
		return solver.Layer{}, err
	}
	if err := b.Finish(); err != nil {
		return solver.Layer{}, err
	}
	c, err := p.Commit(b, "")
	return committed(c), err
}
