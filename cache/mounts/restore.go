package mounts

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// fetching is how many blocks are fetched and unpacked at once.
const fetching = 4

// Open opens a blob, whose last Read fails if it does not match desc.
type Open func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)

// Restore writes the files of a mount into the directory to, which is empty. Every file is compared with its digest. What is in to after an
// error must not be used.
func Restore(ctx context.Context, disk *dir.FS, c *Contents, to string, open Open) error {
	r := &restorer{disk: disk, contents: c, open: open, same: map[layer.Digest][]int{}}
	var err error
	if r.root, err = rootfs.Open(to); err != nil {
		return err
	}
	defer r.root.Close()
	if err := r.names(ctx); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetching)
	for i := range c.Blocks {
		g.Go(func() error { return r.block(gctx, &c.Blocks[i]) })
	}
	if err := g.Wait(); err != nil {
		return errors.Join(ctxio.Ended(ctx), err)
	}
	return r.finish(ctx)
}

type restorer struct {
	disk     *dir.FS
	contents *Contents
	root     *rootfs.Root
	open     Open
	// same has for the digest of each file with bytes the entries after the first that have the same.
	same map[layer.Digest][]int
}

// names makes directories, symbolic links and empty files, and finds the files with the same bytes.
func (r *restorer) names(ctx context.Context) error {
	w := r.disk.NewWriter(r.root)
	defer w.Close()
	first := map[layer.Digest]bool{}
	for i := range r.contents.Manifest.Entries {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		e := r.contents.Manifest.At(i)
		var err error
		switch {
		case e.Type == layer.Dir, e.Type == layer.Symlink:
			err = w.Put(&e, nil)
		case e.Type == layer.File && e.Size == 0:
			err = put(w, &e, strings.NewReader(""))
		case e.Type == layer.File && first[e.Digest]:
			r.same[e.Digest] = append(r.same[e.Digest], i)
		case e.Type == layer.File:
			first[e.Digest] = true
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// put writes a file, and compares it with its entry.
func put(w *dir.Writer, e *layer.Entry, body io.Reader) error {
	made := *e
	if err := w.Put(&made, body); err != nil {
		return err
	}
	if made.Digest != e.Digest || made.Size != e.Size {
		return fmt.Errorf("the bytes of /%s are not those of its digest", layer.Clip(e.Path))
	}
	return nil
}

// block fetches a block and writes the files in it.
func (r *restorer) block(ctx context.Context, b *Block) (err error) {
	packed, err := r.open(ctx, b.Desc)
	if err != nil {
		return err
	}
	defer packed.Close()
	source := &ctxio.Source{R: ctxio.Reader(ctx, packed)}
	defer func() {
		if err != nil && source.Err != nil {
			err = source.Err // the cause
		}
	}()
	z, err := zstd.NewReader(source, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(pack.MaxWindow))
	if err != nil {
		return err
	}
	defer z.Close()
	w := r.disk.NewWriter(r.root)
	defer w.Close()
	for _, p := range b.Pieces {
		if p.Entry < 0 {
			if _, err := io.CopyN(io.Discard, z, p.Size); err != nil {
				return fmt.Errorf("block %s: %w", b.Desc.Digest, err)
			}
			continue
		}
		e := r.contents.Manifest.At(p.Entry)
		if err := put(w, &e, io.LimitReader(z, p.Size)); err != nil {
			return err
		}
		if err := r.copies(w, &e); err != nil {
			return err
		}
	}
	if n, err := io.CopyN(io.Discard, z, 1); n > 0 || err != io.EOF {
		return errors.Join(fmt.Errorf("block %s has more bytes than its files", b.Desc.Digest), err)
	}
	_, err = io.Copy(io.Discard, source) // its digest is known at the end
	return err
}

// copies writes the other files with the bytes of one that is there.
func (r *restorer) copies(w *dir.Writer, from *layer.Entry) error {
	for _, i := range r.same[from.Digest] {
		e := r.contents.Manifest.At(i)
		f, err := r.root.OpenNoSymlinks(from.Path, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		err = errors.Join(put(w, &e, f), f.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// finish makes hard links, whose files are there now, and sets the times of directories, which do not change any more.
func (r *restorer) finish(ctx context.Context) error {
	w := r.disk.NewWriter(r.root)
	defer w.Close()
	for _, last := range []layer.Type{layer.Hardlink, layer.Dir} {
		for e := range r.contents.Manifest.All() {
			if err := ctxio.Ended(ctx); err != nil {
				return err
			}
			if e.Type != last {
				continue
			}
			var err error
			if e.Type == layer.Dir {
				err = w.SetTime(e)
			} else {
				err = w.Put(e, nil)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
