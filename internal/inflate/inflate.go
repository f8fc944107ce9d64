//go:build amd64 || arm64

package inflate

import (
	"bufio"
	"errors"
	"io"
)

// Decoder decodes DEFLATE streams, one at a time. It is not safe for concurrent use, and takes 21 KiB.
type Decoder struct {
	src *bufio.Reader

	// bits holds the next n bits of the stream, the first one lowest; the bits above are zero. Between blocks and symbols n is less than 8,
	// so that src is at the first byte that nothing was taken of.
	bits uint64
	n    uint

	state  state
	final  bool  // the block is the last one
	fixed  bool  // the tables are those of RFC 1951, 3.2.6
	stored int   // bytes that are left of a stored block
	taken  int64 // bytes of the source, of the stream
	total  int64 // bytes decoded of the stream
	err    error

	litlen [litlenSize]entry
	dist   [distSize]entry
}

// state is what comes next in a stream.
type state uint8

const (
	atBlock state = iota
	inStored
	inSymbols
	atEnd
)

// NewDecoder returns a Decoder of the stream at which src is.
func NewDecoder(src *bufio.Reader) *Decoder { return &Decoder{src: src} }

// Reset begins another stream, at which the source is now.
func (d *Decoder) Reset() {
	d.bits, d.n = 0, 0
	d.state, d.final, d.stored, d.taken, d.total, d.err = atBlock, false, 0, 0, 0, nil
}

// Decode decodes into buf[from:] until less than Slack bytes are left of it or the stream ends, and returns where in buf its
// output ends. Bytes after that may have been overwritten. buf[:from] must end in what was decoded last of the stream: at least Window bytes,
// or everything if that is less.
//
// At the end of the stream the error is io.EOF, and the source is at the byte after it. If the source ends before, the error is
// io.ErrUnexpectedEOF; if the stream is invalid, it is a CorruptError. Other errors are those of the source. What was decoded before the
// error is in buf.
func (d *Decoder) Decode(buf []byte, from int) (int, error) {
	if d.err != nil {
		return from, d.err
	}
	base := from - int(min(int64(from), d.total))
	to, err := d.decode(buf, base, from)
	d.total += int64(to - from)
	if err == errCorrupt {
		err = CorruptError(d.taken)
	}
	d.err = err
	return to, err
}

// decode is Decode; matches reach no further than base.
func (d *Decoder) decode(buf []byte, base, pos int) (int, error) {
	for len(buf)-pos >= Slack {
		var err error
		switch d.state {
		case atBlock:
			err = d.block()
		case inStored:
			pos, err = d.copyStored(buf, pos)
		case inSymbols:
			pos, err = d.symbols(buf, base, pos)
		case atEnd:
			return pos, io.EOF
		}
		if err != nil {
			return pos, err
		}
	}
	return pos, nil
}

// more takes one byte of the source.
func (d *Decoder) more() error {
	c, err := d.src.ReadByte()
	if err != nil {
		return noEOF(err)
	}
	d.bits |= uint64(c) << d.n
	d.n += 8
	d.taken++
	return nil
}

// take returns the next k bits, at most 16.
func (d *Decoder) take(k uint) (int, error) {
	for d.n < k {
		if err := d.more(); err != nil {
			return 0, err
		}
	}
	v := d.bits & (1<<k - 1)
	d.bits >>= k
	d.n -= k
	return int(v), nil
}

// block reads the header of a block.
func (d *Decoder) block() error {
	header, err := d.take(3)
	if err != nil {
		return err
	}
	d.final = header&1 != 0
	switch header >> 1 {
	case 0:
		return d.storedBlock()
	case 1:
		d.fixedTables()
	case 2:
		if err := d.dynamicTables(); err != nil {
			return err
		}
	default:
		return errCorrupt
	}
	d.state = inSymbols
	return nil
}

// endBlock follows the last symbol or byte of a block.
func (d *Decoder) endBlock() {
	d.state = atBlock
	if d.final {
		d.state = atEnd
	}
}

func (d *Decoder) storedBlock() error {
	d.bits, d.n = 0, 0 // the rest of the byte is not used
	size, err := d.take(16)
	if err != nil {
		return err
	}
	complement, err := d.take(16)
	if err != nil {
		return err
	}
	if size^complement != 0xffff {
		return errCorrupt
	}
	d.stored, d.state = size, inStored
	return nil
}

// copyStored copies bytes of a stored block.
func (d *Decoder) copyStored(buf []byte, pos int) (int, error) {
	if d.stored == 0 {
		d.endBlock()
		return pos, nil
	}
	n, err := d.src.Read(buf[pos:min(len(buf), pos+d.stored)])
	d.stored -= n
	d.taken += int64(n)
	if n > 0 {
		err = nil // it is returned again, or the block has all it needs
	}
	return pos + n, noEOF(err)
}

// codeOrder is the order in which the lengths of the code for lengths are written (RFC 1951, 3.2.7).
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// The numbers of symbols that a dynamic block may have codes for.
const (
	maxLitlen = 286
	maxDist   = 30
)

// dynamicTables reads the codes of a block.
func (d *Decoder) dynamicTables() error {
	counts, err := d.take(14)
	if err != nil {
		return err
	}
	litlens, dists, codes := counts&31+257, counts>>5&31+1, counts>>10+4
	if litlens > maxLitlen || dists > maxDist {
		return errCorrupt
	}
	var codeLengths [19]uint8
	for _, symbol := range codeOrder[:codes] {
		length, err := d.take(3)
		if err != nil {
			return err
		}
		codeLengths[symbol] = uint8(length)
	}
	// The table for distances holds the code for lengths until the lengths are known.
	d.fixed = false
	if !build(d.dist[:], distRoot, codeLengths[:], codeSymbols[:]) {
		return errCorrupt
	}
	var lengths [maxLitlen + maxDist]uint8
	for i, n := 0, litlens+dists; i < n; {
		e, length, err := d.symbol(d.dist[:], distRoot)
		if err != nil {
			return err
		}
		if e&special != 0 {
			return errCorrupt
		}
		if length < 16 {
			lengths[i] = uint8(length)
			i++
			continue
		}
		var repeated uint8
		extra, least := uint(3), 3
		switch length {
		case 16:
			if i == 0 {
				return errCorrupt
			}
			repeated, extra = lengths[i-1], 2
		case 18:
			extra, least = 7, 11
		}
		times, err := d.take(extra)
		if err != nil {
			return err
		}
		if times += least; times > n-i {
			return errCorrupt
		}
		for range times {
			lengths[i] = repeated
			i++
		}
	}
	if !build(d.litlen[:], litlenRoot, lengths[:litlens], litlenSymbols[:]) ||
		!build(d.dist[:], distRoot, lengths[litlens:litlens+dists], distSymbols[:]) {
		return errCorrupt
	}
	return nil
}

// fixedTables makes the tables of a block that has the codes of RFC 1951, 3.2.6.
func (d *Decoder) fixedTables() {
	if d.fixed {
		return
	}
	var lengths [len(litlenSymbols)]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	build(d.litlen[:], litlenRoot, lengths[:], litlenSymbols[:])
	for i := range len(distSymbols) {
		lengths[i] = 5
	}
	build(d.dist[:], distRoot, lengths[:len(distSymbols)], distSymbols[:])
	d.fixed = true
}

// symbol takes one symbol of the source, with its extra bits, and no byte more than it needs. It returns the symbol's entry, and
// the base of the entry with the extra bits.
func (d *Decoder) symbol(table []entry, root uint) (entry, int, error) {
	for {
		e, rest, used := table[d.bits&(1<<root-1)], d.bits, uint(0)
		if e&subtable == subtable {
			rest, used = rest>>root, root
			e = table[e.index(rest)]
		}
		// If bits are missing that decide which entry it is, those that are there are zero, and the entry needs more as well.
		if used+e.bits() <= d.n {
			d.bits = rest >> e.bits()
			d.n -= used + e.bits()
			return e, e.value(rest), nil
		}
		if err := d.more(); err != nil {
			return 0, 0, err
		}
	}
}

// symbols decodes symbols until less than Slack bytes of buf are left, or the block ends.
func (d *Decoder) symbols(buf []byte, base, pos int) (int, error) {
	for len(buf)-pos >= Slack {
		if d.src.Buffered() >= minInput {
			in, err := d.src.Peek(d.src.Buffered())
			if err != nil {
				return pos, err
			}
			used, to, end := d.fast(in, buf, base, pos)
			if _, err := d.src.Discard(used); err != nil {
				return pos, err
			}
			d.taken += int64(used)
			pos = to
			switch end {
			case blockEnd:
				d.endBlock()
				return pos, nil
			case corrupt:
				return pos, errCorrupt
			}
			continue
		}
		e, length, err := d.symbol(d.litlen[:], litlenRoot)
		switch {
		case err != nil:
			return pos, err
		case e&literal != 0:
			buf[pos] = e.literal()
			pos++
			continue
		case e&endOfBlock == endOfBlock:
			d.endBlock()
			return pos, nil
		case e&special != 0:
			return pos, errCorrupt
		}
		e, offset, err := d.symbol(d.dist[:], distRoot)
		switch {
		case err != nil:
			return pos, err
		case e&special != 0 || offset > pos-base:
			return pos, errCorrupt
		}
		for range length {
			buf[pos] = buf[pos-offset]
			pos++
		}
	}
	return pos, nil
}

var errCorrupt = errors.New("corrupt")

// noEOF returns the error of a source that ended where it must not.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
