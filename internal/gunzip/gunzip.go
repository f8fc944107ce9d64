// Package gunzip reads gzip (RFC 1952, RFC 1951). Unpacking a base image waits for the one thread that decompresses, so this
// decoder is made for speed: a symbol takes one look-up in most cases, a 64-bit buffer is filled without branches, and
// matches are copied eight bytes at a time. It uses nothing unsafe.
package gunzip

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/bits"
)

// FormatError says what of the input is not as gzip is.
type FormatError string

func (e FormatError) Error() string { return "gzip: " + string(e) }

const (
	window = 32 << 10  // how far back a match may begin
	block  = 512 << 10 // how much is decoded at a time
	// slack is what one round of the decoder may write beyond a block: two literals, a match, and the rest of its last copy.
	slack = 2 + 258 + 8
	// margin is how many bytes one round of the decoder may look at, and at least what it takes. Before the next byte as many are
	// kept: eight of them can be in the bit buffer, and be given back.
	margin = 32

	inSize  = margin + 128<<10 + margin
	outSize = window + block + slack
)

// Reader is the uncompressed bytes of one gzip member after another, as gzip(1) takes them. It is not safe for concurrent use.
type Reader struct {
	src io.Reader
	// in[pos:end] is the input to come. Behind the end of all input margin zeros follow; bits of them are never used.
	in       *[inSize]byte
	pos, end int
	eof      bool
	// bits has nbits bits of the input that are not used, the next one lowest. What is above them are bits of in[pos:] or zeros.
	bits  uint64
	nbits uint

	// out[read:write] is what the caller has not got yet; before read lies the window.
	out         *[outSize]byte
	read, write int
	member      int // where the member begins in out, or 0 if before it
	sumFrom     int // what lies before it is in sum
	sum         uint32
	size        uint32

	next  func(*Reader) error // what follows in the input
	err   error               // after out is read
	final bool                // the deflate block is the last one
	left  int                 // bytes of a stored block to come
	lit   [1 << 12]uint32
	dist  [1 << 10]uint32
}

// NewReader returns a reader of what r holds compressed, and reads the first header. It does not stop before r's end.
func NewReader(r io.Reader) (*Reader, error) {
	z := &Reader{src: r, in: new([inSize]byte), out: new([outSize]byte)}
	z.pos, z.end = margin, margin
	z.read, z.write, z.sumFrom = window, window, window
	if err := z.header(); err != nil {
		return nil, unexpected(err)
	}
	return z, nil
}

// Read implements io.Reader.
func (z *Reader) Read(p []byte) (int, error) {
	for z.read == z.write {
		if z.err != nil {
			return 0, z.err
		}
		z.decode()
	}
	n := copy(p, z.out[z.read:z.write])
	z.read += n
	return n, nil
}

// decode fills out, all of which the caller has.
func (z *Reader) decode() {
	gone := z.write - window
	copy(z.out[:], z.out[gone:z.write])
	z.member = max(0, z.member-gone)
	z.read, z.write, z.sumFrom = window, window, window
	for z.err == nil && z.write < window+block {
		if z.next == nil {
			z.err = io.EOF
		} else {
			z.err = unexpected(z.next(z))
		}
	}
	z.checksum()
}

func (z *Reader) checksum() {
	z.sum = crc32.Update(z.sum, crc32.IEEETable, z.out[z.sumFrom:z.write])
	z.size += uint32(z.write - z.sumFrom)
	z.sumFrom = z.write
}

// unexpected is for an end of the input in the middle of a member.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// fill reads until there are n bytes, at most margin, from pos on, or until the input's end: then fewer may be there.
func (z *Reader) fill(n int) error {
	for z.end-z.pos < n && !z.eof {
		if z.pos > margin {
			z.end = copy(z.in[:], z.in[z.pos-margin:z.end])
			z.pos = margin
		}
		k, err := z.src.Read(z.in[z.end : inSize-margin])
		z.end += k
		if err == io.EOF {
			z.eof = true
			clear(z.in[z.end : z.end+margin])
		} else if err != nil {
			return err
		}
	}
	return nil
}

// need puts n bits into the buffer, at most 32.
func (z *Reader) need(n uint) error {
	for z.nbits < n {
		if err := z.fill(1); err != nil {
			return err
		}
		if z.pos >= z.end {
			return io.EOF
		}
		z.bits |= uint64(z.in[z.pos]) << z.nbits
		z.pos++
		z.nbits += 8
	}
	return nil
}

func (z *Reader) drop(n uint) {
	z.bits >>= n
	z.nbits -= n
}

// get takes n bits, at most 32.
func (z *Reader) get(n uint) (uint32, error) {
	if err := z.need(n); err != nil {
		return 0, err
	}
	v := uint32(z.bits & (1<<n - 1))
	z.drop(n)
	return v, nil
}

// align goes on at the next whole byte, and empties the bit buffer.
func (z *Reader) align() {
	z.pos -= int(z.nbits / 8)
	z.bits, z.nbits = 0, 0
}

// header reads a member's header (RFC 1952, 2.3).
func (z *Reader) header() error {
	z.align()
	z.sum = 0
	octet := func() (byte, error) {
		v, err := z.get(8)
		z.sum = crc32.Update(z.sum, crc32.IEEETable, []byte{byte(v)})
		return byte(v), err
	}
	var h [10]byte
	for i := range h {
		var err error
		if h[i], err = octet(); err != nil {
			return err
		}
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 {
		return FormatError("no header of a member with deflated data")
	}
	const hasSum, hasExtra, hasName, hasComment = 2, 4, 8, 16
	if h[3]&hasExtra != 0 {
		low, _ := octet()
		high, err := octet()
		for n := int(high)<<8 | int(low); n > 0 && err == nil; n-- {
			_, err = octet()
		}
		if err != nil {
			return err
		}
	}
	for _, text := range []byte{hasName, hasComment} {
		for c := byte(1); h[3]&text != 0 && c != 0; {
			var err error
			if c, err = octet(); err != nil {
				return err
			}
		}
	}
	if h[3]&hasSum != 0 {
		want := z.sum & 0xffff
		if sum, err := z.get(16); err != nil {
			return err
		} else if sum != want {
			return FormatError("the checksum of a header is wrong")
		}
	}
	z.sum, z.size, z.member, z.sumFrom = 0, 0, z.write, z.write
	z.next = (*Reader).deflateBlock
	return nil
}

// trailer reads what follows a member, and looks whether another one does.
func (z *Reader) trailer() error {
	z.align()
	z.checksum()
	sum, err := z.get(32)
	if err != nil {
		return err
	}
	size, err := z.get(32)
	if err != nil {
		return err
	}
	if sum != z.sum || size != z.size {
		return FormatError("the checksum is wrong")
	}
	if err := z.fill(1); err != nil {
		return err
	}
	z.next = (*Reader).header
	if z.pos >= z.end {
		z.next = nil
	}
	return nil
}

// deflateBlock reads the header of a block (RFC 1951, 3.2.3).
func (z *Reader) deflateBlock() error {
	if z.final {
		z.final = false
		return z.trailer()
	}
	h, err := z.get(3)
	if err != nil {
		return err
	}
	z.final = h&1 != 0
	z.next = (*Reader).codes
	switch h >> 1 {
	case 0:
		z.align()
		n, err := z.get(16)
		if err != nil {
			return err
		}
		inverse, err := z.get(16)
		if err != nil {
			return err
		}
		if n != inverse^0xffff {
			return FormatError("the length of a stored block is wrong")
		}
		z.left, z.next = int(n), (*Reader).stored
		return nil
	case 1:
		z.tables(fixedLengths[:288], fixedLengths[288:])
		return nil
	case 2:
		return z.dynamic()
	}
	return FormatError("a block is of no known type")
}

// stored copies from the input. The bit buffer is empty.
func (z *Reader) stored() error {
	for z.left > 0 && z.write < window+block {
		if err := z.fill(1); err != nil {
			return err
		}
		if z.pos >= z.end {
			return io.EOF
		}
		n := copy(z.out[z.write:min(z.write+z.left, window+block)], z.in[z.pos:z.end])
		z.pos += n
		z.write += n
		z.left -= n
	}
	if z.left == 0 {
		z.next = (*Reader).deflateBlock
	}
	return nil
}

// lengthOrder is the order in which the lengths of the codes for code lengths come (RFC 1951, 3.2.7).
var lengthOrder = [19]byte{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// fixedLengths are those of the fixed codes (RFC 1951, 3.2.6).
var fixedLengths = func() (l [288 + 32]uint8) {
	for i := range l {
		switch {
		case i < 144:
			l[i] = 8
		case i < 256:
			l[i] = 9
		case i < 280:
			l[i] = 7
		case i < 288:
			l[i] = 8
		default:
			l[i] = 5
		}
	}
	return l
}()

// dynamic reads the codes of a block.
func (z *Reader) dynamic() error {
	h, err := z.get(14)
	if err != nil {
		return err
	}
	lits, dists, n := int(h&31)+257, int(h>>5&31)+1, int(h>>10)+4
	if lits > 286 || dists > 30 {
		return FormatError("a block has more codes than there are")
	}
	var lengths [286 + 30]uint8
	for _, i := range lengthOrder[:n] {
		l, err := z.get(3)
		if err != nil {
			return err
		}
		lengths[i] = uint8(l)
	}
	var code [1 << 7]uint32
	if !build(code[:], 7, lengths[:19], plainEntries[:]) {
		return FormatError("the codes of a block are wrong")
	}
	clear(lengths[:19])
	for i := 0; i < lits+dists; {
		// A code and its extra bits are 14 at most, and at the end of the input there may be fewer.
		if err := z.need(14); err != nil && err != io.EOF {
			return err
		}
		e := code[z.bits&(1<<7-1)]
		n := uint(e & codeBits)
		if e == 0 {
			return FormatError("a code of a block is not known")
		}
		if n > z.nbits {
			return io.EOF
		}
		z.drop(n)
		symbol := uint8(e >> 16) // at most 18
		if symbol < 16 {
			lengths[i] = symbol
			i++
			continue
		}
		again, extra := 3, uint(2)
		switch symbol {
		case 17:
			extra = 3
		case 18:
			again, extra = 11, 7
		}
		more, err := z.get(extra)
		if err != nil {
			return err
		}
		again += int(more)
		if again > lits+dists-i || symbol == 16 && i == 0 {
			return FormatError("the lengths of a block's codes are wrong")
		}
		for ; again > 0; again-- {
			if symbol == 16 {
				lengths[i] = lengths[i-1]
			}
			i++
		}
	}
	if lengths[256] == 0 || !z.tables(lengths[:lits], lengths[lits:lits+dists]) {
		return FormatError("the codes of a block are wrong")
	}
	return nil
}

func (z *Reader) tables(lits, dists []uint8) bool {
	return build(z.lit[:], litBits, lits, litEntries[:]) && build(z.dist[:], distBits, dists, distEntries[:])
}

// An entry of a table is 0 for what is no code. Else its lowest four bits are the number of bits to drop, and above bit 16
// is a literal, the least length of a match, its least distance, or the begin of a further table; bits 8 to 11 are how many
// extra bits follow, or how many bits the further table is asked with.
const (
	codeBits  = 15
	isLiteral = 1 << 31 // of lit
	isEnd     = 1 << 30 // of lit
	isTable   = 1 << 7

	litBits  = 11
	distBits = 8
)

// plainEntries are those of the codes for code lengths.
var plainEntries = func() (e [19]uint32) {
	for i := range e {
		e[i] = isLiteral | uint32(i)<<16
	}
	return e
}()

// litEntries and distEntries are the entries of symbols without the number of bits to drop (RFC 1951, 3.2.5).
var litEntries, distEntries = func() (lit [288]uint32, dist [32]uint32) {
	for i := range 256 {
		lit[i] = isLiteral | uint32(i)<<16
	}
	lit[256] = isEnd
	least := uint32(3)
	for i := range uint32(28) {
		extra := uint32(0)
		if i >= 8 {
			extra = i/4 - 1
		}
		lit[257+i] = least<<16 | extra<<8
		least += 1 << extra
	}
	lit[285] = 258 << 16
	least = 1
	for i := range uint32(30) {
		extra := uint32(0)
		if i >= 4 {
			extra = i/2 - 1
		}
		dist[i] = least<<16 | extra<<8
		least += 1 << extra
	}
	return lit, dist
}()

// build makes the table that is asked with the next width bits, from the lengths of the symbols' codes and their entries. It is
// false if that is no complete prefix code: incomplete may only be none, and a single code of one bit.
func build(table []uint32, width uint, lengths []uint8, entries []uint32) bool {
	var count [16]int
	for _, l := range lengths {
		count[l]++
	}
	used := len(lengths) - count[0]
	count[0] = 0
	var next [17]uint32 // the next code of each length
	var first [17]int   // where the symbols of each length begin when they are sorted
	longest := uint(0)
	for l := uint(1); l < 16; l++ {
		next[l+1] = (next[l] + uint32(count[l])) << 1
		first[l+1] = first[l] + count[l]
		if count[l] > 0 {
			longest = l
		}
		if next[l]+uint32(count[l]) > 1<<l {
			return false
		}
	}
	clear(table[:1<<width])
	if used == 0 {
		return true
	}
	if next[longest]+uint32(count[longest]) != 1<<longest && (used != 1 || longest != 1) {
		return false
	}
	var sorted [288]uint16
	for i, l := range lengths {
		if l > 0 {
			sorted[first[l]] = uint16(i)
			first[l]++
		}
	}
	free := 1 << width // where the next further table may begin
	for _, symbol := range sorted[:used] {
		l := uint(lengths[symbol])
		code := uint(bits.Reverse16(uint16(next[l]))) >> (16 - l)
		next[l]++
		left := count[l] // of this length, with this one
		count[l]--
		e := entries[symbol]
		if l <= width {
			if e != 0 {
				e |= uint32(l)
			}
			for i := code; i < 1<<width; i += 1 << l {
				table[i] = e
			}
			continue
		}
		// Codes come in order, so those of one further table come together, the longest last: what is left of the code space below
		// the common bits says how long that is.
		low := code & (1<<width - 1)
		if table[low] == 0 {
			sub := l - width
			for left := 1<<sub - left; left > 0 && width+sub < longest; {
				sub++
				left = left<<1 - count[width+sub]
			}
			if free+1<<sub > len(table) {
				return false
			}
			clear(table[free : free+1<<sub])
			table[low] = uint32(free)<<16 | uint32(sub)<<8 | isTable | uint32(width)
			free += 1 << sub
		}
		begin, sub := table[low]>>16, uint(table[low]>>8&15)
		if e != 0 {
			e |= uint32(l - width)
		}
		for i := code >> width; i < 1<<sub; i += 1 << (l - width) {
			table[uint(begin)+i] = e
		}
	}
	return true
}

// codes decodes the symbols of a block until it ends, or out is full.
func (z *Reader) codes() error {
	in, out, lit, dist := z.in, z.out, &z.lit, &z.dist
	bits, nbits, pos, write := z.bits, z.nbits, z.pos, z.write
	var err error
	for write < window+block {
		if z.end-pos < margin {
			z.pos = pos
			if err = z.fill(margin); err != nil {
				break
			}
			pos = z.pos
			if pos-int(nbits/8) > z.end {
				err = io.EOF
				break
			}
		}
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (nbits & 63)
		pos += int((63 - nbits) >> 3)
		nbits |= 56
		e := lit[bits&(1<<litBits-1)]
		if e&isLiteral != 0 {
			bits >>= e & codeBits
			nbits -= uint(e & codeBits)
			out[write] = byte(e >> 16)
			write++
			e = lit[bits&(1<<litBits-1)]
			if e&isLiteral != 0 {
				bits >>= e & codeBits
				nbits -= uint(e & codeBits)
				out[write] = byte(e >> 16)
				write++
				e = lit[bits&(1<<litBits-1)]
			}
		}
		bits >>= e & codeBits
		nbits -= uint(e & codeBits)
		if e&isTable != 0 {
			e = lit[(e>>16+uint32(bits&(1<<(e>>8&15)-1)))%uint32(len(lit))]
			bits >>= e & codeBits
			nbits -= uint(e & codeBits)
		}
		if e&isLiteral != 0 {
			out[write] = byte(e >> 16)
			write++
			continue
		}
		if e&isEnd != 0 {
			z.next = (*Reader).deflateBlock
			break
		}
		if e == 0 {
			err = FormatError("a code of the data is not known")
			break
		}
		extra := e >> 8 & 15
		length := int(e>>16) + int(bits&(1<<extra-1))
		bits >>= extra
		nbits -= uint(extra)

		bits |= binary.LittleEndian.Uint64(in[pos:]) << (nbits & 63)
		pos += int((63 - nbits) >> 3)
		nbits |= 56
		e = dist[bits&(1<<distBits-1)]
		bits >>= e & codeBits
		nbits -= uint(e & codeBits)
		if e&isTable != 0 {
			e = dist[(e>>16+uint32(bits&(1<<(e>>8&15)-1)))%uint32(len(dist))]
			bits >>= e & codeBits
			nbits -= uint(e & codeBits)
		}
		extra = e >> 8 & 15
		back := int(e>>16) + int(bits&(1<<extra-1))
		bits >>= extra
		nbits -= uint(extra)
		if back > write-z.member || e == 0 {
			err = FormatError("a match begins before the data")
			break
		}
		from, end := write-back, write+length
		switch {
		case back >= length && length > 32:
			copy(out[write:end], out[from:])
		case back >= 8:
			for ; write < end; write, from = write+8, from+8 {
				binary.LittleEndian.PutUint64(out[write:], binary.LittleEndian.Uint64(out[from:]))
			}
		default:
			for ; write < end; write, from = write+1, from+1 {
				out[write] = out[from]
			}
		}
		write = end
	}
	z.bits, z.nbits, z.pos, z.write = bits, nbits, pos, write
	return err
}
