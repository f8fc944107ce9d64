package gunzip

import (
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
)

// The flags of a header (RFC 1952, 2.3.1), and the method that is the only one.
const (
	hasSum     = 1 << 1
	hasExtra   = 1 << 2
	hasName    = 1 << 3
	hasComment = 1 << 4
	reserved   = 0xe0

	deflate = 8
)

// maxText is the length that a name and a comment may have with the zero byte after them, as in compress/gzip.
const maxText = 512

// header reads the header of a member, of which nothing is needed. The error is io.EOF if there is none.
func (m *members) header() error {
	var fixed [10]byte
	if _, err := io.ReadFull(m.src, fixed[:]); err != nil {
		return err
	}
	flags := fixed[3]
	if fixed[0] != 0x1f || fixed[1] != 0x8b || fixed[2] != deflate || flags&reserved != 0 {
		return gzip.ErrHeader
	}
	h := summed{m: m, sum: crc32.ChecksumIEEE(fixed[:])}
	m.size = 0
	if flags&hasExtra != 0 {
		h.extra()
	}
	if flags&hasName != 0 {
		h.text()
	}
	if flags&hasComment != 0 {
		h.text()
	}
	if sum := h.sum; flags&hasSum != 0 && h.number() != int(uint16(sum)) && h.err == nil {
		return gzip.ErrHeader
	}
	return noEOF(h.err)
}

// summed reads fields of a header and adds them to its check sum. After an error it does nothing.
type summed struct {
	m   *members
	sum uint32
	err error
}

func (h *summed) read(p []byte) {
	if h.err == nil {
		_, h.err = io.ReadFull(h.m.src, p)
		h.sum = crc32.Update(h.sum, crc32.IEEETable, p)
	}
}

func (h *summed) number() int {
	var b [2]byte
	h.read(b[:])
	return int(binary.LittleEndian.Uint16(b[:]))
}

// extra skips the extra field, and takes the size of the member if it is there.
func (h *summed) extra() {
	n := h.number()
	if n == len(sizeField)+4 {
		var field [len(sizeField) + 4]byte
		h.read(field[:])
		if string(field[:len(sizeField)]) == sizeField {
			h.m.size = int(min(binary.LittleEndian.Uint32(field[len(sizeField):]), math.MaxInt32))
		}
		return
	}
	var buf [256]byte
	for ; n > 0 && h.err == nil; n -= len(buf) {
		h.read(buf[:min(n, len(buf))])
	}
}

// text skips bytes up to a zero byte.
func (h *summed) text() {
	var b [1]byte
	for range maxText {
		h.read(b[:])
		if h.err != nil || b[0] == 0 {
			return
		}
	}
	h.err = gzip.ErrHeader
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
