// Package mounts turns the files of cache mounts into blocks that travel, and back. It does not know where blocks are kept, nor which step
// uses a mount.
//
// A block is a blob with the bytes of files, one after the other, compressed with zstd. It never changes: files that are new since the last
// export become blocks of their own, and a block is given up once less than half of what is in it is needed. An index, another blob, has
// the manifest of the files, and says in which block the bytes of each are.
//
// Blocks that are cut where the content says, as by a rolling hash over all files in order, would depend on nothing but the files. But the
// caches of npm and Go have files named by digests, in hundreds of directories, and one more package adds files everywhere: almost every
// such block changes. docs/cache-mounts.md has figures.
package mounts

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
)

// The limits of one mount.
const (
	// DefaultMaxSize is how many bytes the files of a mount may have, unless a user says otherwise.
	DefaultMaxSize = 4 << 30
	// MaxFiles is how many files and directories a mount may have.
	MaxFiles = 1 << 20
	// maxManifest is how many bytes the manifest in an index may have.
	maxManifest = 512 << 20
)

// indexMagic begins an index: "kiln cache mount 1\n", the length of the manifest, the manifest as package layer has it, the number of
// blocks and the blocks. A block is its digest, its size, the number of its pieces and the pieces: the number of an entry of the manifest,
// counted from 1, whose bytes they are, or 0 and the size of what is not needed any more. Numbers are unsigned varints.
const indexMagic = "kiln cache mount 1\n"

// Contents is what an index says.
type Contents struct {
	// Manifest lists the files. It is mapped from a file without a name.
	Manifest *layer.Manifest
	Blocks   []Block
}

// Block is one block.
type Block struct {
	Desc   ocispec.Descriptor
	Pieces []Piece
}

// Piece is the bytes of a file in a block.
type Piece struct {
	// Entry is the index of a File of the manifest that has these bytes, the first one; -1 if none has them any more.
	Entry int
	Size  int64
}

// Close lets go of the manifest.
func (c *Contents) Close() error { return c.Manifest.Close() }

// sizes returns the size of all pieces, and of those that are needed.
func (b *Block) sizes() (all, live int64) {
	for _, p := range b.Pieces {
		all += p.Size
		if p.Entry >= 0 {
			live += p.Size
		}
	}
	return all, live
}

// encode writes the index. manifest is a file that layer.Writer wrote.
func encode(w io.Writer, manifest *os.File, blocks []Block) error {
	info, err := manifest.Stat()
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	var b []byte
	b = append(b, indexMagic...)
	b = binary.AppendUvarint(b, uint64(info.Size()))
	if _, err := out.Write(b); err != nil {
		return err
	}
	if _, err := io.Copy(out, manifest); err != nil {
		return err
	}
	b = binary.AppendUvarint(b[:0], uint64(len(blocks)))
	for _, block := range blocks {
		b = append(b, block.Desc.Digest.Encoded()...)
		b = binary.AppendUvarint(b, uint64(block.Desc.Size))
		b = binary.AppendUvarint(b, uint64(len(block.Pieces)))
		for _, p := range block.Pieces {
			b = binary.AppendUvarint(b, uint64(p.Entry+1))
			if p.Entry < 0 {
				b = binary.AppendUvarint(b, uint64(p.Size))
			}
		}
		if _, err := out.Write(b); err != nil {
			return err
		}
		b = b[:0]
	}
	if _, err := out.Write(b); err != nil { // where there is no block
		return err
	}
	return out.Flush()
}

// Decode reads an index as it is sent, by way of a file in the directory tmp. Nothing in it is believed. limit is how many bytes the files
// may have. Close must be called on what is returned.
func Decode(ctx context.Context, r io.Reader, tmp string, limit int64) (*Contents, error) {
	z, err := zstd.NewReader(ctxio.Reader(ctx, r), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(pack.MaxWindow))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	c, err := decode(bufio.NewReader(z), tmp, limit)
	if err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	return c, nil
}

func decode(r *bufio.Reader, tmp string, limit int64) (*Contents, error) {
	magic := make([]byte, len(indexMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return nil, err
	}
	if string(magic) != indexMagic {
		return nil, errors.New("it is not an index that this kiln can read")
	}
	m, err := decodeManifest(r, tmp, limit)
	if err != nil {
		return nil, err
	}
	c := &Contents{Manifest: m}
	if err := c.decodeBlocks(r); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return c, nil
}

func decodeManifest(r *bufio.Reader, tmp string, limit int64) (*layer.Manifest, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if n > maxManifest {
		return nil, fmt.Errorf("the manifest has %d bytes, and the limit is %d", n, maxManifest)
	}
	in, err := os.MkdirTemp(tmp, "index-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(in) // the manifest is mapped
	name := filepath.Join(in, "manifest")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = io.CopyN(f, r, int64(n))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	m, err := layer.ReceiveManifest(name, layer.Limit{Size: limit, Entries: MaxFiles})
	if err != nil {
		return nil, err
	}
	if err := allowed(m); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// allowed returns an error if a manifest has what scan never finds.
func allowed(m *layer.Manifest) error {
	for e := range m.All() {
		bad := func(what string) error {
			return fmt.Errorf("/%s %s, which a cache mount cannot have", layer.Clip(e.Path), what)
		}
		for _, x := range e.Xattrs {
			if len(x.Name) <= len(attributePrefix) || x.Name[:len(attributePrefix)] != attributePrefix {
				return bad("has the attribute " + layer.Clip(x.Name))
			}
		}
		switch e.Type {
		case layer.File:
			if e.Mode&^fileMode != 0 {
				return bad("has a set-user-ID, set-group-ID or sticky bit")
			}
		case layer.Dir:
			if e.Mode&^dirMode != 0 || e.Opaque || e.Implied {
				return bad("is a directory of another kind")
			}
		case layer.Symlink, layer.Hardlink:
		default:
			return bad("is a device or a pipe")
		}
	}
	if m.Entries == 0 || m.Type(0) != layer.Dir || m.At(0).Path != "" {
		return errors.New("it does not say what the mount's own directory is like")
	}
	return nil
}

func (c *Contents) decodeBlocks(r *bufio.Reader) error {
	wanted, size := firsts(c.Manifest)
	var err error
	number := func(most int64) int64 {
		n := uint64(0)
		if err == nil {
			n, err = binary.ReadUvarint(r)
		}
		if err == nil && n > uint64(most) {
			err = fmt.Errorf("a number is larger than %d", most)
		}
		if err != nil {
			return 0
		}
		return int64(n)
	}
	most := int64(2*MaxFiles + pack.MaxBlocks) // pieces
	for range number(pack.MaxBlocks) {
		text := make([]byte, 64)
		if err == nil {
			_, err = io.ReadFull(r, text)
		}
		b := Block{Desc: ocispec.Descriptor{MediaType: pack.BlockType, Size: number(1 << 50)}}
		b.Desc.Digest = digest.NewDigestFromEncoded(digest.SHA256, string(text))
		if err == nil {
			err = b.Desc.Digest.Validate()
		}
		pieces := number(most)
		most -= pieces
		for range pieces {
			p := Piece{Entry: int(number(int64(c.Manifest.Entries))) - 1}
			if err != nil {
				return err
			}
			if p.Entry < 0 {
				p.Size = number(size)
			} else {
				e := c.Manifest.At(p.Entry)
				if first, ok := wanted[e.Digest]; e.Type != layer.File || !ok || first != p.Entry {
					return fmt.Errorf("a block has /%s, which it cannot have", layer.Clip(e.Path))
				}
				delete(wanted, e.Digest)
				p.Size = e.Size
			}
			b.Pieces = append(b.Pieces, p)
		}
		if err != nil {
			return err
		}
		if all, live := b.sizes(); all > 2*live {
			return errors.New("most of a block is not needed")
		}
		c.Blocks = append(c.Blocks, b)
	}
	if err == nil && len(wanted) > 0 {
		err = fmt.Errorf("no block has the bytes of %d files", len(wanted))
	}
	return err
}

// firsts returns the first entry of each digest that Files with bytes have, and how many bytes all files have.
func firsts(m *layer.Manifest) (entries map[layer.Digest]int, size int64) {
	entries = map[layer.Digest]int{}
	for i := range m.Entries {
		if m.Type(i) != layer.File {
			continue
		}
		e := m.At(i)
		if _, ok := entries[e.Digest]; !ok && e.Size > 0 {
			entries[e.Digest] = i
		}
		size += e.Size
	}
	return entries, size
}
