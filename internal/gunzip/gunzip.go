// Package gunzip reads gzip files (RFC 1952), as compress/gzip does and with its errors, by package inflate.
package gunzip

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/kilnbuild/kiln/internal/inflate"
)

// The sizes of buffers, in bytes. A Reader has one block; one that reads ahead has aheadBlocks of them, of which one is being decoded,
// one summed and one read.
const (
	inputSize   = 64 << 10
	blockSize   = 128 << 10
	aheadSize   = 512 << 10
	aheadBlocks = 5
)

// Reader reads the uncompressed bytes of the members of a gzip file. A wrong check sum or length is gzip.ErrChecksum, at the end of the
// member; a header that is invalid, or anything else after a member, is gzip.ErrHeader; a file that ends too early is
// io.ErrUnexpectedEOF; data that is not valid is an inflate.CorruptError. A Reader is not safe for concurrent use.
type Reader struct {
	members members
	block   *block // the last one
	rest    []byte // what was not read of it
	crc     uint32 // of the member so far
	size    uint32
	err     error

	ahead *ahead // nil if it does not read ahead
}

// block is a piece of the uncompressed bytes of one member.
type block struct {
	buf      []byte
	from, to int
	end      bool     // the block is the member's last one
	trailer  *trailer // of the member, to be compared; nil if there is nothing to be compared
	err      error    // after the block, or after the member

	sized *sized // nil unless it was used for a whole member
	whole bool   // it is used for one now
}

// trailer is what follows a member's data.
type trailer struct{ crc, size uint32 }

// NewReader returns a Reader of r, of which it reads the first header. It returns io.EOF if r is empty. The Reader may read more of r
// than it needs.
func NewReader(r io.Reader) (*Reader, error) {
	src := bufio.NewReaderSize(r, inputSize)
	z := &Reader{members: members{src: src}}
	if err := z.members.header(); err != nil {
		return nil, err
	}
	z.members.decoder = inflate.NewDecoder(src)
	return z, nil
}

// newBlock returns a block for size bytes at a time.
func newBlock(size int) *block { return &block{buf: make([]byte, inflate.Window+size+inflate.Slack)} }

// Read implements io.Reader.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := z.next(); err != nil {
		return 0, err
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

// WriteTo implements io.WriterTo.
func (z *Reader) WriteTo(w io.Writer) (int64, error) {
	total := int64(0)
	for {
		if err := z.next(); err != nil {
			return total, noErr(err)
		}
		n, err := w.Write(z.rest)
		total += int64(n)
		z.rest = z.rest[n:]
		if err != nil {
			return total, err
		}
	}
}

func noErr(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// next makes sure that there is something to be read, or returns why not.
func (z *Reader) next() error {
	for len(z.rest) == 0 {
		if z.err != nil {
			return z.err
		}
		z.fill()
	}
	return nil
}

// fill takes the next block, and checks the sum of a member that ends with it.
func (z *Reader) fill() {
	if z.ahead == nil {
		last := z.block
		if last == nil {
			z.block = newBlock(blockSize)
		}
		z.members.fill(z.block, last)
	} else {
		z.block = z.ahead.next(z.block)
	}
	b := z.block
	z.rest, z.err = b.buf[b.from:b.to], b.err
	if b.whole {
		return
	}
	z.crc = crc32.Update(z.crc, crc32.IEEETable, z.rest)
	z.size += uint32(len(z.rest))
	if b.trailer != nil {
		if *b.trailer != (trailer{z.crc, z.size}) {
			z.err = gzip.ErrChecksum
		}
		z.crc, z.size = 0, 0
	}
}

// Close stops the reading ahead, if there is any, and waits for a Read of the source that is under way. It does not close the source.
// The Reader cannot be used afterwards.
func (z *Reader) Close() error {
	if z.ahead != nil {
		z.ahead.stop()
	}
	z.rest, z.err = nil, errClosed
	return nil
}

// members decodes a gzip file.
type members struct {
	src     *bufio.Reader
	decoder *inflate.Decoder
	size    int // of the member that comes next, as its header says; 0 for unknown
}

// fill fills a block with what follows the last one, which may be the same.
func (m *members) fill(b, last *block) {
	from := 0
	if last != nil && !last.end {
		from = copy(b.buf, last.buf[max(0, last.to-inflate.Window):last.to])
	}
	b.from, b.end, b.trailer, b.whole = from, false, nil, false
	b.to, b.err = m.decoder.Decode(b.buf, b.from)
	if b.err == io.EOF {
		b.end = true
		b.trailer, b.err = m.end()
	}
}

// end reads what follows a member's data, and the header of the next member. The error is io.EOF if there is none.
func (m *members) end() (*trailer, error) {
	var t [8]byte
	if _, err := io.ReadFull(m.src, t[:]); err != nil {
		return nil, noEOF(err)
	}
	sums := &trailer{binary.LittleEndian.Uint32(t[:]), binary.LittleEndian.Uint32(t[4:])}
	m.decoder.Reset()
	return sums, m.header()
}
