package localdir

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// A step looks at a directory twice: to find out what it would make, and to make it. What another program writes to in between makes a
// difference, and the step is planned again. After maxChanges of those what is in the directory then counts until the build ends: listings
// are kept in memory, and of files that changed lately copies are taken.
const maxChanges = 3

// maxListed bounds the entries of listings that are kept. What is beyond is read again, and must not change.
const maxListed = 1 << 20

// copies is what is kept of a directory that is written to.
type copies struct {
	changes atomic.Int32
	still   atomic.Bool // from now on what is read counts
	any     atomic.Bool // there are files
	mu      sync.Mutex
	files   map[string]fileCopy // by path
	lists   map[string][]layer.Entry
	listed  int // entries of lists
}

// fileCopy is a file as it was: its bytes are in another one.
type fileCopy struct {
	entry layer.Entry
	file  string
}

// of returns the copy of the file at a path.
func (c *copies) of(path string) (fileCopy, bool) {
	if !c.any.Load() {
		return fileCopy{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f, ok := c.files[path]
	return f, ok
}

// listing returns what is kept of the directory at a path.
func (c *copies) listing(path string) ([]layer.Entry, bool) {
	if !c.still.Load() {
		return nil, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	list, ok := c.lists[path]
	return slices.Clone(list), ok
}

// keepListing keeps what is in the directory at a path.
func (c *copies) keepListing(path string, list []layer.Entry) {
	if !c.still.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.lists[path]; ok || c.listed+len(list) > maxListed {
		return
	}
	if c.lists == nil {
		c.lists = map[string][]layer.Entry{}
	}
	list = slices.Clone(list)
	for i := range list {
		list[i].Digest = layer.Digest{} // Sum looks whether the file has changed
	}
	c.lists[path] = list
	c.listed += len(list)
}

// remove removes the copies.
func (c *copies) remove() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, f := range c.files {
		errs = append(errs, os.Remove(f.file))
	}
	c.files = nil
	return errors.Join(errs...)
}

// Changed tells the directory that something in it is not what it was when a step was planned, or made it fail.
func (d *Dir) Changed() {
	if d.copies.changes.Add(1) == maxChanges {
		d.copies.still.Store(true)
		d.warn(fmt.Sprintf("%s is written to while it is read: what was in it when it was read last is used", d.name))
	}
}

// volatile reports whether what is read of a file counts, and the file may change again without having another stamp.
func (d *Dir) volatile(st *unix.Stat_t) bool {
	return d.copies.still.Load() && st.Ctim.Nano() >= d.now().Add(-settled).UnixNano()
}

// copy takes a copy of the file f, whose entry is e but for the digest, of the size that e has.
func (d *Dir) copy(ctx context.Context, f *os.File, e *layer.Entry) error {
	tmp, err := os.CreateTemp(d.stats.tmp, "copy-")
	if err != nil {
		return err
	}
	h := sha256.New()
	e.Size, err = io.Copy(io.MultiWriter(tmp, h), ctxio.Reader(ctx, io.LimitReader(f, e.Size)))
	if err = errors.Join(err, tmp.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	h.Sum(e.Digest[:0])
	d.copies.mu.Lock()
	defer d.copies.mu.Unlock()
	if other, ok := d.copies.files[e.Path]; ok {
		*e = other.entry
		return os.Remove(tmp.Name())
	}
	if d.copies.files == nil {
		d.copies.files = map[string]fileCopy{}
	}
	d.copies.files[e.Path] = fileCopy{*e, tmp.Name()}
	d.copies.any.Store(true)
	return nil
}

// openCopy opens the copy of the file at a path; nil if there is none.
func (d *Dir) openCopy(path string) (*os.File, error) {
	c, ok := d.copies.of(path)
	if !ok {
		return nil, nil
	}
	return os.Open(c.file)
}
