package localdir

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Sum implements layer.Tree: files whose digest was not in the cache are read, several at a time. One that changes while it is read is
// read again, and at last what it had when it was opened counts.
func (d *Dir) Sum(ctx context.Context, entries []*layer.Entry) error {
	if !slices.ContainsFunc(entries, unknown) {
		return nil
	}
	count := d.counting(ctx, entries)
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan *layer.Entry)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			buf := make([]byte, 256<<10)
			for e := range work {
				if err := d.sum(ctx, e, buf, count); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(work)
		for _, e := range entries {
			if !unknown(e) {
				continue
			}
			select {
			case work <- e:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	return g.Wait()
}

// unknown reports whether an entry is a file whose digest is not known.
func unknown(e *layer.Entry) bool { return e.Type == layer.File && e.Digest == (layer.Digest{}) }

// counting returns what is called with the number of bytes of each read.
func (d *Dir) counting(ctx context.Context, entries []*layer.Entry) func(n int) {
	var total int64
	for _, e := range entries {
		if unknown(e) {
			total += e.Size
		}
	}
	if count := d.reading(ctx, total); count != nil {
		return count
	}
	return func(int) {}
}

// counter is a reader that says how much was read.
type counter struct {
	io.Reader
	count func(n int)
}

func (c counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.count(n)
	return n, err
}

// maxReads is how many times a file that changes while it is read is read.
const maxReads = 3

// sum fills in the digest of a file, with what else it is then.
func (d *Dir) sum(ctx context.Context, e *layer.Entry, buf []byte, count func(n int)) error {
	for reads := 1; ; reads++ {
		if c, ok := d.copies.of(e.Path); ok {
			*e = c.entry
			return nil
		}
		f, err := d.open(e)
		switch {
		case errors.Is(err, errSocket):
			e.Size, e.Digest = 0, sha256.Sum256(nil)
			return nil
		case missing(err):
			e.Type = layer.Whiteout
			return nil
		case err != nil:
			return err
		}
		ok, err := d.sumOpen(ctx, f, e, buf, count, reads == maxReads)
		if err = errors.Join(err, f.Close()); err != nil || ok {
			return err
		}
	}
}

// sumOpen is sum for a file that is open. It is false for one that changed while it was read, unless that was the last try.
func (d *Dir) sumOpen(ctx context.Context, f *os.File, e *layer.Entry, buf []byte, count func(n int), last bool) (bool, error) {
	opened := d.now()
	var before, after unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &before); err != nil {
		return false, err
	}
	now, err := d.entry(int(f.Fd()), "", e.Path, &before, new(finger))
	if err != nil {
		return false, err
	}
	if *e = now; e.Digest != (layer.Digest{}) {
		return true, nil
	}
	if e.Xattrs, err = d.xattrs(int(f.Fd()), "", e.Path); err != nil {
		return false, err
	}
	hasXattrs := len(e.Xattrs) > 0
	d.canonical(e)
	if d.volatile(&before) {
		return true, d.copy(ctx, f, e)
	}
	digest, n, err := sum(counter{ctxio.Reader(ctx, io.LimitReader(f, before.Size+1)), count}, buf)
	if err != nil {
		return false, err
	}
	if err := unix.Fstat(int(f.Fd()), &after); err != nil {
		return false, err
	}
	if n == before.Size && stampOf(&before) == stampOf(&after) {
		e.Digest = digest
		d.stats.put(stampOf(&before), learnt{digest: digest, xattrs: hasXattrs}, opened)
		return true, nil
	}
	if !last {
		return false, nil
	}
	d.warn(fmt.Sprintf("/%s changed each time that it was read: what it had when it was opened is used", layer.Clip(e.Path)))
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	return true, d.copy(ctx, f, e)
}

var errSocket = errors.New("is a socket")

// open opens a regular file of the directory, never anything that could block.
func (d *Dir) open(e *layer.Entry) (*os.File, error) {
	f, err := d.root.OpenNoSymlinks(e.Path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil, errSocket
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &layer.ChangedError{Path: e.Path}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Open implements layer.Tree.
func (d *Dir) Open(e *layer.Entry) (io.ReadCloser, error) {
	f, err := d.openCopy(e.Path)
	if f == nil && err == nil {
		f, err = d.open(e)
	}
	switch {
	case errors.Is(err, errSocket):
		return io.NopCloser(strings.NewReader("")), nil
	case missing(err):
		return nil, &layer.ChangedError{Path: e.Path}
	case err != nil:
		return nil, err
	}
	return ctxio.ReadCloser(d.ctx, f), nil
}
