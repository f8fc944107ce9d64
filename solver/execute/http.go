package execute

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/work"
	digest "github.com/opencontainers/go-digest"
)

// httpClient returns the client of ADD from http and https.
func (x *Job) httpClient() *httpsource.Client {
	c := httpsource.New(filepath.Join(x.Root, rootdir.HTTP), x.Tmp, x.Secret)
	c.Limit = x.Limit
	return c
}

// HTTP implements plan.Sources. A file that has changed comes down at once, since its digest is asked for. It only becomes a layer when no
// layer is known to hold it. The server is asked once in a build, so that every step has the same file.
func (x *Job) HTTP(ctx context.Context, op llb.HTTP) (httpsource.File, error) {
	key := fmt.Sprintf("%q %q %q %q %q", op.URL, op.User, op.Checksum, op.Secret, op.Header)
	return x.found.Do(ctx, key, func(ctx context.Context) (httpsource.File, error) { return x.look(ctx, op) })
}

// look finds out what a file is now.
func (x *Job) look(ctx context.Context, op llb.HTTP) (httpsource.File, error) {
	f, err := x.Uploaded(ctx, x.Tmp, op)
	if err != nil {
		return httpsource.File{}, err
	}
	if f == nil {
		var report func(current int64, done bool)
		task := events.From(ctx)
		req, err := x.httpRequest(ctx, op)
		if err != nil {
			return httpsource.File{}, err
		}
		req.Received = func(bytes, total int64) {
			if report == nil {
				report = task.Transferring(op.Filename, events.Moving, total)
			}
			report(bytes, false)
		}
		if f, err = x.httpClient().Look(ctx, req); err != nil {
			return httpsource.File{}, err
		}
		if report != nil {
			report(f.Size, true)
		}
	}
	if f.Path != "" {
		x.keepFile(op, f.Digest, f.Path)
	}
	return *f, nil
}

func (x *Job) httpRequest(ctx context.Context, op llb.HTTP) (httpsource.Request, error) {
	req := httpsource.Request{HTTP: remoteurl.HTTP{URL: op.URL, User: op.User}, Checksum: digest.Digest(op.Checksum)}
	for _, h := range op.Header {
		if req.Header == nil {
			req.Header = http.Header{}
		}
		req.Header.Set(h.Name, h.Value)
	}
	if op.Secret == "" {
		return req, nil
	}
	value, ok, err := x.Secret(ctx, op.Secret)
	if err == nil && !ok {
		err = &SecretError{op.Secret}
	}
	req.Authorization = strings.TrimSpace(string(value))
	if err == nil && strings.ContainsAny(req.Authorization, "\r\n\x00") {
		err = fmt.Errorf("secret %s has more than one line, and cannot be sent in a header", op.Secret)
	}
	return req, err
}

func fileName(op llb.HTTP, d digest.Digest) string { return op.URL + " " + d.String() }

// keepFile keeps a file that was downloaded, for takeFile or until the build ends.
func (x *Job) keepFile(op llb.HTTP, d digest.Digest, file string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	name := fileName(op, d)
	if old, ok := x.files[name]; ok {
		os.Remove(old)
	}
	x.files[name] = file
}

// takeFile returns a file that was kept; false if there is none. The caller removes it.
func (x *Job) takeFile(op llb.HTTP, d digest.Digest) (string, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	name := fileName(op, d)
	file, ok := x.files[name]
	delete(x.files, name)
	return file, ok
}

// download makes the layer of a file that was looked at.
func (x *Job) download(ctx context.Context, w work.HTTP, job solver.Job) ([]solver.Made, error) {
	op := w.Op
	modified := time.Unix(0, 0)
	if w.Modified != "" {
		var err error
		if modified, err = time.Parse(time.RFC3339, w.Modified); err != nil {
			return nil, fmt.Errorf("BUG: the time of a file: %w", err)
		}
	}
	file, ok := x.takeFile(op, digest.Digest(w.Digest))
	if !ok {
		// It has not changed, and the layer that held it is gone, or not wanted.
		again, err := x.Uploaded(ctx, x.Tmp, op)
		if err == nil && again == nil {
			var req httpsource.Request
			if req, err = x.httpRequest(ctx, op); err == nil {
				again, err = x.httpClient().Get(ctx, req)
			}
		}
		if err != nil {
			return nil, err
		}
		if file = again.Path; again.Digest.String() != w.Digest {
			os.Remove(file)
			return nil, fmt.Errorf("download %s: the file changed while the build looked at it: build again", remoteurl.Shown(op.URL))
		}
	}
	defer os.Remove(file)
	body, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	info, err := body.Stat()
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(job.Stderr, "downloaded %d bytes, %s\n", info.Size(), w.Digest)
	e := layer.Entry{Path: op.Filename, Type: layer.File, Mode: 0o600, Size: info.Size(), ModTime: modified}
	return x.fill(ctx, func(put func(layer.Entry, io.Reader) error) error { return put(e, body) })
}

// UseBlob implements plan.Sources: its digest says all.
func (x *Job) UseBlob(llb.Blob) {}

// blob makes the layer of a blob.
func (x *Job) blob(ctx context.Context, op llb.Blob) ([]solver.Made, error) {
	body, size, err := x.Blobs.Blob(ctx, op)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if size > httpsource.MaxSize {
		return nil, fmt.Errorf("blob %s of %s is larger than the %d GiB that are allowed", op.Digest, op.Ref, httpsource.MaxSize>>30)
	}
	return x.fill(ctx, func(put func(layer.Entry, io.Reader) error) error {
		e := layer.Entry{Path: op.Filename, Type: layer.File, Mode: 0o600, Size: size, ModTime: time.Unix(0, 0)}
		if err := put(e, body); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, body) // at its end is known whether it is the right one
		return err
	})
}

// File makes a root file system of one file, mode 0600 and owned by root, whose bytes are those of body.
func (x *Job) File(ctx context.Context, name string, body io.Reader) (solver.Ref, error) {
	made, err := x.fill(ctx, func(put func(layer.Entry, io.Reader) error) error {
		return put(layer.Entry{Path: name, Type: layer.File, Mode: 0o600, ModTime: time.Unix(0, 0)}, body)
	})
	if err != nil {
		return solver.Ref{}, err
	}
	return solver.NewRef(made[0].Layer), nil
}

// nothing is a tree without even a root directory.
type nothing struct{}

func (nothing) Lookup(string) (layer.Entry, bool, error)  { return layer.Entry{}, false, nil }
func (nothing) List(string) ([]layer.Entry, error)        { return nil, nil }
func (nothing) Sum(context.Context, []*layer.Entry) error { return nil }
func (nothing) Open(*layer.Entry) (io.ReadCloser, error)  { return nil, os.ErrNotExist }

// fill makes a layer over nothing of the entries that source gives to put, until ctx ends.
func (x *Job) fill(ctx context.Context, source func(put func(layer.Entry, io.Reader) error) error) ([]solver.Made, error) {
	p, err := x.Snapshots.New()
	if err != nil {
		return nil, err
	}
	defer p.Close()
	b := compose.New(nothing{}, x.Tmp, time.Unix(0, 0), p.Writer())
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
		return nil, err
	}
	if err := b.Finish(); err != nil {
		return nil, err
	}
	c, err := p.Commit(ctx, b, "")
	return made(c), err
}
