package mounts

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// Place is where a mount is written to: it takes blobs by digest, and is safe for concurrent use.
type Place interface {
	// Put stores a blob, unless it is there. open may be called several times, until Put returns.
	Put(ctx context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error
}

// Written is a mount that was written.
type Written struct {
	Index  ocispec.Descriptor
	Blocks []ocispec.Descriptor
	// Files is how many files and directories there are, and Size how many bytes the files have.
	Files int
	Size  int64
}

const (
	// blockSize is how many bytes of files a block has at least, if there are as many; a mount with more than aimed blocks has larger ones.
	blockSize = 8 << 20
	aimed     = 256
	// maxSmall is how many blocks may be smaller. Then they are made one.
	maxSmall = 8
	// sending is how many blocks are sent at once.
	sending = 3
	// inMemory is the size up to which a file is read once, to hash it and to put it into a block.
	inMemory = 1 << 20
)

// Write writes the files in a directory to a place. old is what the place has of the mount already, whose blocks are used again; nil for
// none. Unfinished work goes to the directory tmp. The files may change meanwhile: what is written is what was read. The error is a
// *TooLargeError if the files have more than limit bytes.
func Write(ctx context.Context, disk *dir.FS, from, tmp string, old *Contents, limit int64, to Place) (*Written, error) {
	tmp, err := os.MkdirTemp(tmp, "mount-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	root, err := rootfs.Open(from)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	w := &writer{tmp: tmp, root: root, to: to, buf: make([]byte, inMemory+1)}
	found, err := w.find(ctx, disk, limit)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	w.reuse(found, old)
	return w.write(ctx, found)
}

type writer struct {
	tmp  string
	root *rootfs.Root
	to   Place
	buf  []byte

	kept   []keptBlock
	known  map[layer.Digest]bool // bytes that are in kept
	target int64
}

// keptBlock is a block that is there already.
type keptBlock struct {
	desc   ocispec.Descriptor
	pieces []foundPiece
}

// foundPiece is the bytes of a file; digest is zero for what no file had at the last export.
type foundPiece struct {
	digest layer.Digest
	size   int64
}

// find writes a manifest of the files as they are now.
func (w *writer) find(ctx context.Context, disk *dir.FS, limit int64) (*layer.Manifest, error) {
	top, err := w.root.OpenNoSymlinks("", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	name := filepath.Join(w.tmp, "found")
	out, err := layer.NewWriter(name)
	if err != nil {
		top.Close()
		return nil, err
	}
	err = scan(ctx, disk, top, limit, func(e *layer.Entry) error {
		if e.Type == layer.File {
			if ok, err := w.hash(ctx, e, io.Discard); err != nil || !ok {
				return err
			}
		}
		return out.Add(e)
	})
	if err != nil {
		out.Abort()
		return nil, err
	}
	if _, err := out.Close(time.Unix(0, 0)); err != nil {
		return nil, err
	}
	return layer.OpenManifest(name)
}

// hash reads a file, writes its bytes to to, and notes their digest and number. It returns false if there is no such file any more. Up to
// inMemory bytes are written at once, after their digest is known.
func (w *writer) hash(ctx context.Context, e *layer.Entry, to io.Writer) (bool, error) {
	f, err := w.root.OpenNoSymlinks(e.Path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, ignoreGone(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return false, err
	}
	h := sha256.New()
	e.Size, err = io.CopyBuffer(io.MultiWriter(h, to), io.LimitReader(ctxio.Reader(ctx, f), max(e.Size, inMemory)), w.buf)
	h.Sum(e.Digest[:0])
	if err != nil {
		return false, fmt.Errorf("read /%s: %w", layer.Clip(e.Path), err)
	}
	return true, nil
}

// reuse decides which blocks of old are kept: those of which at least half is needed, without the small ones where there are many.
func (w *writer) reuse(found *layer.Manifest, old *Contents) {
	wanted, size := firsts(found)
	w.target = blockSize
	for w.target*aimed < size {
		w.target *= 2
	}
	w.known = map[layer.Digest]bool{}
	if old == nil {
		return
	}
	small := 0
	var blocks []keptBlock
	for _, b := range old.Blocks {
		k := keptBlock{desc: b.Desc}
		all, live := int64(0), int64(0)
		for _, p := range b.Pieces {
			f := foundPiece{size: p.Size}
			if p.Entry >= 0 {
				f.digest = old.Manifest.At(p.Entry).Digest
				if _, ok := wanted[f.digest]; ok {
					live += p.Size
				}
			}
			all += p.Size
			k.pieces = append(k.pieces, f)
		}
		if 2*live < all || live == 0 {
			continue
		}
		if all < w.target {
			small++
		}
		blocks = append(blocks, k)
	}
	for _, k := range blocks {
		all := int64(0)
		for _, p := range k.pieces {
			all += p.size
		}
		if all < w.target && small > maxSmall || len(w.kept) >= pack.MaxBlocks/2 {
			continue
		}
		w.kept = append(w.kept, k)
		for _, p := range k.pieces {
			if p.digest != (layer.Digest{}) {
				w.known[p.digest] = true
			}
		}
	}
}

// write puts what is new into blocks, and writes the index. Files that have changed since they were found are written as they are now, and
// those that have vanished are not.
func (w *writer) write(ctx context.Context, found *layer.Manifest) (*Written, error) {
	name := filepath.Join(w.tmp, "manifest")
	out, err := layer.NewWriter(name)
	if err != nil {
		return nil, err
	}
	closed := false
	defer func() {
		if !closed {
			out.Abort()
		}
	}()
	result := &Written{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(sending)
	defer func() { _ = g.Wait() }() // where it was not waited for, another error is returned
	p := &packer{writer: w, group: g, ctx: gctx}
	defer p.abort()
	gone := map[string]bool{}
	for e := range found.All() {
		if err := ctxio.Ended(gctx); err != nil {
			return nil, cmp.Or(g.Wait(), err) // of a block that could not be sent
		}
		switch {
		case e.Type == layer.Hardlink && gone[e.Link]:
			continue
		case e.Type == layer.File && e.Size > 0 && !w.known[e.Digest]:
			there, err := p.add(e)
			if err != nil {
				return nil, cmp.Or(g.Wait(), err)
			}
			if !there {
				gone[e.Path] = true
				continue
			}
		}
		if err := out.Add(e); err != nil {
			return nil, err
		}
		result.Files++
		if e.Type == layer.File {
			result.Size += e.Size
		}
	}
	if err := errors.Join(p.flush(), g.Wait()); err != nil {
		return nil, err
	}
	closed = true
	if _, err := out.Close(time.Unix(0, 0)); err != nil {
		return nil, err
	}
	return result, w.index(ctx, name, result)
}

// index writes the index of the manifest in a file.
func (w *writer) index(ctx context.Context, name string, result *Written) error {
	m, err := layer.OpenManifest(name)
	if err != nil {
		return err
	}
	defer m.Close()
	wanted, _ := firsts(m)
	var blocks []Block
	for _, k := range w.kept {
		b := Block{Desc: k.desc}
		for _, p := range k.pieces {
			entry, ok := wanted[p.digest]
			if !ok || p.digest == (layer.Digest{}) {
				entry = -1
			}
			delete(wanted, p.digest)
			if n := len(b.Pieces); entry < 0 && n > 0 && b.Pieces[n-1].Entry < 0 {
				b.Pieces[n-1].Size += p.size
				continue
			}
			b.Pieces = append(b.Pieces, Piece{entry, p.size})
		}
		if all, live := b.sizes(); all > 2*live {
			// A file has changed since the blocks were chosen. The next export finds it as it is then.
			return errors.New("the files changed while they were read")
		}
		blocks = append(blocks, b)
		result.Blocks = append(result.Blocks, b.Desc)
	}
	if len(wanted) > 0 || len(blocks) > pack.MaxBlocks {
		return fmt.Errorf("BUG: %d files are in none of %d blocks", len(wanted), len(blocks))
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	out, err := create(w.tmp)
	if err != nil {
		return err
	}
	defer out.close()
	if err := encode(out, f, blocks); err != nil {
		return err
	}
	if result.Index, err = out.finish(pack.IndexType); err != nil {
		return err
	}
	if result.Index.Size > pack.MaxIndex {
		return &TooLargeError{fmt.Sprintf("its index has more than %d bytes", pack.MaxIndex)}
	}
	return w.to.Put(ctx, result.Index, out.open)
}

// packer makes blocks, and has them sent while others are made.
type packer struct {
	*writer
	group *errgroup.Group
	ctx   context.Context

	out    *compressed // nil between blocks
	pieces []foundPiece
	size   int64
}

// add adds a file to the block, as it is now; false if it is gone.
func (p *packer) add(e *layer.Entry) (bool, error) {
	if p.out == nil {
		var err error
		if p.out, err = create(p.tmp); err != nil {
			return false, err
		}
	}
	var small bytes.Buffer
	to := io.Writer(p.out)
	if e.Size <= inMemory {
		to = &small // so that a file that has become one of those that are known is not written
	}
	there, err := p.hash(p.ctx, e, to)
	if err != nil || !there || e.Size == 0 || to == &small && p.known[e.Digest] {
		return there, err
	}
	if _, err := p.out.Write(small.Bytes()); err != nil {
		return false, err
	}
	f := foundPiece{e.Digest, e.Size}
	if p.known[e.Digest] {
		f.digest = layer.Digest{} // written, and not needed
	}
	p.known[e.Digest] = true
	p.pieces = append(p.pieces, f)
	if p.size += e.Size; p.size < p.target {
		return true, nil
	}
	return true, p.flush()
}

// flush ends the block, and begins to send it.
func (p *packer) flush() error {
	if p.out == nil || len(p.pieces) == 0 {
		return nil
	}
	out := p.out
	desc, err := out.finish(pack.BlockType)
	if err != nil {
		return err
	}
	p.kept = append(p.kept, keptBlock{desc, p.pieces})
	p.out, p.pieces, p.size = nil, nil, 0
	p.group.Go(func() error {
		defer out.close()
		return p.to.Put(p.ctx, desc, out.open)
	})
	return nil
}

func (p *packer) abort() {
	if p.out != nil {
		p.out.close()
	}
}

// compressed is a file that is written with zstd: the same bytes become the same file.
type compressed struct {
	file *os.File
	sum  digest.Digester
	zstd *zstd.Encoder
}

func create(tmp string) (*compressed, error) {
	f, err := os.CreateTemp(tmp, "blob-")
	if err != nil {
		return nil, err
	}
	c := &compressed{file: f, sum: digest.SHA256.Digester()}
	c.zstd, err = zstd.NewWriter(io.MultiWriter(f, c.sum.Hash()), zstd.WithEncoderConcurrency(1))
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *compressed) Write(p []byte) (int, error) { return c.zstd.Write(p) }

// finish ends the file and returns its descriptor.
func (c *compressed) finish(mediaType string) (ocispec.Descriptor, error) {
	if err := c.zstd.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	size, err := c.file.Seek(0, io.SeekCurrent)
	return ocispec.Descriptor{MediaType: mediaType, Digest: c.sum.Digest(), Size: size}, err
}

func (c *compressed) open() (io.ReadCloser, error) { return os.Open(c.file.Name()) }

// close removes the file.
func (c *compressed) close() {
	c.file.Close()
	_ = os.Remove(c.file.Name()) // the directory that it is in is removed as well
}
