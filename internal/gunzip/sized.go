package gunzip

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"runtime"

	"github.com/kilnbuild/kiln/internal/inflate"
)

// A member whose header says how many bytes it has can be decompressed beside others, since the next one can be found without
// decompressing it. The header of such a member has no other field than an extra field with one subfield (RFC 1952, 2.3.1.1): sizeField,
// and the member's size with header and trailer in four bytes, little endian.
const (
	sizeField   = "kn\x04\x00"
	headerSize  = 10 + 2 + len(sizeField) + 4
	trailerSize = 8 // the check sum and the length of the data
	// MaxSized is the most bytes that such a member may have, and the most of its data.
	MaxSized = 4 << 20
)

// maxWorkers bounds the memory of members that are decompressed side by side, up to 2*MaxSized for each.
const maxWorkers = 8

// AppendHeader appends the header of a member that says its size, which SetSize fills in.
func AppendHeader(b []byte) []byte {
	b = append(b, 0x1f, 0x8b, deflate, hasExtra, 0, 0, 0, 0, 0, 0xff) // no time, unknown operating system
	b = append(b, byte(len(sizeField)+4), 0)
	return append(append(b, sizeField...), 0, 0, 0, 0)
}

// AppendTrailer appends the trailer of a member with this data.
func AppendTrailer(b, data []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(data))
	return binary.LittleEndian.AppendUint32(b, uint32(len(data)))
}

// SetSize completes the header of a member that is whole, of at most MaxSized bytes.
func SetSize(member []byte) {
	binary.LittleEndian.PutUint32(member[headerSize-4:], uint32(len(member)))
}

// Member is what is known of a member without decompressing it.
type Member struct {
	Size int64 // in bytes, with header and trailer
	Data int64 // how many bytes it is decompressed to
}

// minSized is the fewest bytes that a member with a size may have: those of no data have three more.
const minSized = int64(headerSize + trailerSize)

// ReadMember reads from the trailer of a member with a size, which begins at offset, how much data it has.
func ReadMember(r io.ReaderAt, offset, size int64) (Member, error) {
	var length [4]byte
	if size < minSized {
		return Member{}, gzip.ErrHeader
	}
	if _, err := r.ReadAt(length[:], offset+size-int64(len(length))); err != nil {
		return Member{}, noEOF(err)
	}
	return Member{size, int64(binary.LittleEndian.Uint32(length[:]))}, nil
}

// sized is a member that is decompressed beside others.
type sized struct {
	in      []byte // what follows its header
	src     *bufio.Reader
	decoder *inflate.Decoder
	done    chan struct{} // receives a value when the block has its data
}

// read reads the rest of a member whose header says its size.
func (m *members) read(b *block) error {
	n := m.size - headerSize
	if n < trailerSize || m.size > MaxSized {
		return gzip.ErrHeader
	}
	if b.sized == nil {
		b.sized = &sized{done: make(chan struct{}, 1)}
	}
	if cap(b.sized.in) < n {
		b.sized.in = make([]byte, n)
	}
	b.sized.in = b.sized.in[:n]
	_, err := io.ReadFull(m.src, b.sized.in)
	return noEOF(err)
}

// decode decompresses a member that read has read. The data has to end where the header says.
func (s *sized) decode(buf []byte) ([]byte, int, error) {
	body, sums := s.in[:len(s.in)-trailerSize], s.in[len(s.in)-trailerSize:]
	size := binary.LittleEndian.Uint32(sums[4:])
	if size > MaxSized {
		return buf, 0, gzip.ErrHeader
	}
	if len(buf) < int(size)+inflate.Slack {
		buf = make([]byte, int(size)+inflate.Slack)
	}
	if s.decoder == nil {
		s.src = bufio.NewReaderSize(nil, inputSize)
		s.decoder = inflate.NewDecoder(s.src)
	}
	s.src.Reset(bytes.NewReader(body))
	s.decoder.Reset()
	n, err := s.decoder.Decode(buf[:int(size)+inflate.Slack], 0)
	switch {
	case err == nil:
		return buf, n, gzip.ErrChecksum // it has more data than it says
	case err != io.EOF:
		return buf, n, err
	}
	if _, err := s.src.ReadByte(); err != io.EOF {
		return buf, n, gzip.ErrHeader
	}
	if n != int(size) || crc32.ChecksumIEEE(buf[:n]) != binary.LittleEndian.Uint32(sums) {
		return buf, n, gzip.ErrChecksum
	}
	return buf, n, nil
}

func workers() int { return min(runtime.GOMAXPROCS(0), maxWorkers) }
