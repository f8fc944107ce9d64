//go:build amd64 || arm64

package inflate

import "unsafe"

// ending is why fast returned.
type ending uint8

const (
	exhausted ending = iota // there is not enough input or output left for another turn
	blockEnd
	corrupt
)

// A turn of the loop loads eight bytes twice, and advances by up to seven after each. It writes up to three literals, or two and a match,
// whose last copy may write almost copyAhead bytes too many.
const (
	turnInput = 2*7 + 8
	// minInput is enough for the load before the first turn, and a turn.
	minInput = turnInput + 7

	maxMatch  = 258
	copyAhead = 32
)

// Slack is how many bytes of a buffer Decode needs.
const Slack = 2 + maxMatch + copyAhead

// fast decodes symbols while at least turnInput bytes of in and Slack bytes of buf are left, so that a turn has to check nothing but that a
// match begins in buf[base:pos]. It returns how many bytes of in it has used, where its output ends, and why it returned. It
// accesses in and buf by address, always inside of them; all indices into tables are masked.
func (d *Decoder) fast(in, buf []byte, base, pos int) (int, int, ending) {
	const (
		litlenMask = 1<<litlenRoot - 1
		distMask   = 1<<distRoot - 1
	)
	if len(in) < minInput || len(buf) < Slack || pos < base || base < 0 {
		return 0, pos, exhausted
	}
	litlen, dist := &d.litlen, &d.dist
	src, dst := unsafe.Pointer(unsafe.SliceData(in)), unsafe.Pointer(unsafe.SliceData(buf))
	lastIn, lastOut := len(in)-turnInput, len(buf)-Slack
	end := exhausted

	// Of n only the lowest six bits count, so an entry can be subtracted as it is. The bits above n are those that follow in the
	// stream, or zero, so they can be loaded once more.
	bits, n, i := d.bits, d.n, 0
	bits |= load64(src, i) << (n & 63)
	i += int(^n >> 3 & 7)
	n |= 56
	e := litlen[bits&litlenMask]
	for i <= lastIn && pos <= lastOut {
		bits |= load64(src, i) << (n & 63)
		i += int(^n >> 3 & 7)
		n |= 56
		// At least 56 bits: enough for three literals of the root table, or two and a length.
		if int32(e) < 0 {
			bits >>= e & 63
			n -= uint(e)
			store8(dst, pos, byte(e>>16))
			pos++
			e = litlen[bits&litlenMask]
			if int32(e) < 0 {
				bits >>= e & 63
				n -= uint(e)
				store8(dst, pos, byte(e>>16))
				pos++
				e = litlen[bits&litlenMask]
				if int32(e) < 0 {
					bits >>= e & 63
					n -= uint(e)
					store8(dst, pos, byte(e>>16))
					pos++
					e = litlen[bits&litlenMask]
					continue
				}
			}
		}
		if int16(e) < 0 {
			if e&subtable == subtable {
				bits >>= litlenRoot
				n -= litlenRoot
				e = litlen[e.index(bits)%litlenSize]
				if int32(e) < 0 {
					bits >>= e & 63
					n -= uint(e)
					store8(dst, pos, byte(e>>16))
					pos++
					e = litlen[bits&litlenMask]
					continue
				}
			}
			if int16(e) < 0 {
				bits >>= e & 63
				n -= uint(e)
				end = corrupt
				if e&endOfBlock == endOfBlock {
					end = blockEnd
				}
				break
			}
		}
		length := e.value(bits)
		bits >>= e & 63
		n -= uint(e)

		// At least 14 bits, of which the root table needs 8.
		e = dist[bits&distMask]
		bits |= load64(src, i) << (n & 63)
		i += int(^n >> 3 & 7)
		n |= 56
		if int16(e) < 0 {
			if e&subtable == subtable {
				bits >>= distRoot
				n -= distRoot
				e = dist[e.index(bits)%distSize]
			}
			if int16(e) < 0 {
				end = corrupt
				break
			}
		}
		offset := e.value(bits)
		bits >>= e & 63
		n -= uint(e)
		from, to := pos-offset, pos+length
		if from < base {
			end = corrupt
			break
		}

		// At least 28 bits: the next entry is loaded before the bytes are copied, since that takes time as well.
		e = litlen[bits&litlenMask]
		switch {
		case offset >= 8:
			for {
				store64(dst, pos, load64(dst, from))
				store64(dst, pos+8, load64(dst, from+8))
				store64(dst, pos+16, load64(dst, from+16))
				store64(dst, pos+24, load64(dst, from+24))
				pos += 32
				from += 32
				if pos >= to {
					break
				}
			}
		default:
			// A pattern of up to seven bytes, as often as it fits into eight.
			pattern := load64(dst, from) & (1<<(offset*8&63) - 1) * repeat[offset&7]
			for ; pos < to; pos += int(step[offset&7]) {
				store64(dst, pos, pattern)
			}
		}
		pos = to
	}

	// Whole bytes go back.
	n &= 63
	d.n = n & 7
	d.bits = bits & (1<<d.n - 1)
	return i - int(n>>3), pos, end
}

// A pattern of k bytes is multiplied by repeat[k] to fill a word, of which step[k] bytes are whole patterns.
var (
	repeat = [8]uint64{1: 0x0101010101010101, 2: 0x0001000100010001, 3: 1<<48 | 1<<24 | 1, 4: 1<<32 | 1, 5: 1<<40 | 1, 6: 1<<48 | 1, 7: 1<<56 | 1}
	step   = [8]uint8{8, 8, 8, 6, 8, 5, 6, 7}
)

func load64(p unsafe.Pointer, i int) uint64 { return *(*uint64)(unsafe.Add(p, i)) }

func store64(p unsafe.Pointer, i int, v uint64) { *(*uint64)(unsafe.Add(p, i)) = v }

func store8(p unsafe.Pointer, i int, v byte) { *(*byte)(unsafe.Add(p, i)) = v }
