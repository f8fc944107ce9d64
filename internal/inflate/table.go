//go:build amd64 || arm64

package inflate

import "math/bits"

// entry is what a table holds for the bits that a stream has next. From its lowest bit:
//
//	 0-5   the number of bits to take: those of the code and the extra bits after it; of a pointer, those of the root table
//	 8-11  the number of bits of the code; of a pointer, the number of bits that index the subtable
//	13-14  which kind of special entry
//	15     set for a special entry: a pointer to a subtable, the end of a block, or a code that is invalid
//	16-30  what the extra bits are added to: a length, a distance; of a literal the byte, of a pointer where the subtable begins
//	31     set for a literal
//
// In a subtable the bits of the root table, which are taken already, do not count.
type entry uint32

// The kinds of special entries, with the bit that all of them have.
const (
	special    entry = 1 << 15
	subtable   entry = special | 1<<14
	endOfBlock entry = special | 1<<6
	invalid    entry = special

	literal entry = 1 << 31
)

// one is added to a symbol for each bit of its code.
const one entry = 1<<8 | 1

func (e entry) bits() uint    { return uint(e & 63) }
func (e entry) literal() byte { return byte(e >> 16) }

// value returns the base with the extra bits, where next are the bits from the code on.
func (e entry) value(next uint64) int {
	return int(e>>16) + int(next&(1<<(e&63)-1)>>(e>>8&63))
}

// index returns where in its table a subtable has the entry for the bits that follow those of the root table.
func (e entry) index(next uint64) uint64 {
	return uint64(e>>16) + next&(1<<(e>>8&63)-1)
}

// The tables. Codes are up to 15 bits long, and those that are longer than a root table's index need a subtable: one of 2^k entries
// for at least k+1 codes that begin with the same bits. So the 286 codes of literals and lengths need at most 921 entries beyond the
// root table, and the 30 of distances fewer than 512. The sizes are powers of two, so that a masked index is always inside.
const (
	maxCode = 15

	litlenRoot = 11
	litlenSize = 1 << 12
	distRoot   = 8
	distSize   = 1 << 10
)

// symbols of each alphabet, as entries of codes without bits.
var (
	litlenSymbols [288]entry
	distSymbols   [32]entry
	codeSymbols   [19]entry
)

func init() {
	for i := range 256 {
		litlenSymbols[i] = literal | entry(i)<<16
	}
	litlenSymbols[256] = endOfBlock
	// RFC 1951, 3.2.5: four symbols for each number of extra bits, and eight without.
	next := entry(3)
	for i := range entry(28) {
		extra := max(i/4, 1) - 1
		litlenSymbols[257+i] = next<<16 | extra
		next += 1 << extra
	}
	litlenSymbols[285] = 258 << 16
	litlenSymbols[286], litlenSymbols[287] = invalid, invalid
	next = 1
	for i := range entry(30) {
		extra := max(i/2, 1) - 1
		distSymbols[i] = next<<16 | extra
		next += 1 << extra
	}
	distSymbols[30], distSymbols[31] = invalid, invalid
	for i := range codeSymbols {
		codeSymbols[i] = entry(i) << 16
	}
}

// build makes the table of the canonical code with these lengths, one for each symbol and 0 for a symbol without code. It returns false if
// the lengths are those of no code. A code is complete, but for two exceptions that others make as well: no symbol at all,
// and one symbol, of one bit.
func build(table []entry, root uint, lengths []uint8, symbols []entry) bool {
	var count, start [maxCode + 1]int
	for _, length := range lengths {
		count[length]++
	}
	coded := len(lengths) - count[0]
	count[0] = 0
	space, sum := 1, 0 // of codes that are not taken, in the unit of the current length; of codes so far
	longest := uint(0)
	for length := 1; length <= maxCode; length++ {
		start[length] = sum
		sum += count[length]
		if space = 2*space - count[length]; space < 0 {
			return false
		}
		if count[length] > 0 {
			longest = uint(length)
		}
	}
	size := 1 << root
	switch {
	case coded == 0:
		for i := range table[:size] {
			table[i] = invalid
		}
		return true
	case coded == 1 && longest == 1:
		for i := range table[:size] {
			table[i] = invalid + one
		}
	case space > 0:
		return false
	}

	// The symbols, in the order of their codes.
	var sorted [len(litlenSymbols)]uint16
	for symbol, length := range lengths {
		if length > 0 {
			sorted[start[length]] = uint16(symbol)
			start[length]++
		}
	}

	// The root table is doubled for each further bit, as what it holds does not depend on that bit. A place without a code is one of a
	// longer code, or without meaning.
	code, size, rest := uint(0), 1, sorted[:coded]
	table[0] = invalid + one
	for length := uint(1); length <= root; length++ {
		copy(table[size:2*size], table[:size])
		size *= 2
		code *= 2
		for _, symbol := range rest[:count[length]] {
			table[reverse(code, length)] = symbols[symbol] + entry(length)*one
			code++
		}
		rest = rest[count[length]:]
	}

	// Codes that begin with the same bits follow each other, the longest last, and fill their subtable.
	last, begin, end, width := -1, size, size, uint(0) // of the subtable: its index in the root table, its place, the bits of its index
	for length := root + 1; length <= longest; length++ {
		code *= 2
		for i, symbol := range rest[:count[length]] {
			place := reverse(code, length)
			if index := place & (1<<root - 1); index != last {
				last, begin, width = index, end, length-root
				for left := 1<<width - (count[length] - i); left > 0; {
					width++
					left = 2*left - count[root+width]
				}
				end = begin + 1<<width
				table[index] = subtable | entry(begin)<<16 | entry(width)<<8 | entry(root)
			}
			for j := begin + place>>root; j < end; j += 1 << (length - root) {
				table[j] = symbols[symbol] + entry(length-root)*one
			}
			code++
		}
		rest = rest[count[length]:]
	}
	return true
}

// reverse returns a code as a stream has it, its first bit lowest.
func reverse(code, length uint) int { return int(bits.Reverse16(uint16(code)) >> (16 - length)) }
