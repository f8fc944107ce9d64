//go:build amd64 || arm64

package inflate

import (
	"math/bits"
	"math/rand/v2"
	"testing"
)

// randomCode returns the lengths of a complete code for n symbols: a tree in which leaves were split until there are n.
func randomCode(random *rand.Rand, n, longest int) []uint8 {
	leaves := []uint8{1, 1}
	for len(leaves) < n {
		i := random.IntN(len(leaves))
		if random.IntN(3) > 0 {
			i = len(leaves) - 1 // deep trees
		}
		if int(leaves[i]) < longest {
			leaves[i]++
			leaves = append(leaves, leaves[i])
		}
	}
	random.Shuffle(len(leaves), func(i, j int) { leaves[i], leaves[j] = leaves[j], leaves[i] })
	return leaves
}

// Each code of a table leads to its symbol, whatever bits follow, and the tables have room for every code.
func TestBuild(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	for range 300 {
		for _, c := range []struct {
			symbols []entry
			root    uint
			size    int
		}{{litlenSymbols[:], litlenRoot, litlenSize}, {distSymbols[:], distRoot, distSize}, {codeSymbols[:], distRoot, distSize}} {
			longest := maxCode
			if len(c.symbols) == len(codeSymbols) {
				longest = 7
			}
			lengths := randomCode(random, 2+random.IntN(len(c.symbols)-1), longest)
			table := make([]entry, c.size)
			if !build(table, c.root, lengths, c.symbols) {
				t.Fatalf("no table for the lengths %v", lengths)
			}
			code := uint(0)
			for length := 1; length <= maxCode; length++ {
				code *= 2
				for symbol, l := range lengths {
					if int(l) != length {
						continue
					}
					stream := random.Uint64()<<length | bits.Reverse64(uint64(code))>>(64-length)
					e, used := table[stream&(1<<c.root-1)], uint(0)
					if e&subtable == subtable {
						used = e.bits()
						e = table[e.index(stream>>used)]
					}
					used += uint(e >> 8 & 15)
					extra := e.bits() - uint(e>>8&15)
					if want := c.symbols[symbol]; used != uint(length) || extra != want.bits() || e&^0xf3f != want&^0xf3f {
						t.Fatalf("symbol %d of %v: entry %#x for %#x", symbol, lengths, e, want)
					}
					code++
				}
			}
		}
	}
}

// Codes that are not complete, and those with too many symbols, have no table.
func TestBuildRefuses(t *testing.T) {
	table := make([]entry, distSize)
	for _, lengths := range [][]uint8{{1, 1, 1}, {1, 2}, {2}, {2, 2, 2}, {1, 2, 3}, {15}, {1, 1, 15}} {
		if build(table, distRoot, lengths, distSymbols[:]) {
			t.Errorf("a table for the lengths %v", lengths)
		}
	}
	for _, lengths := range [][]uint8{{}, {0, 0}, {1}, {0, 1}, {1, 1}, {1, 2, 2}} {
		if !build(table, distRoot, lengths, distSymbols[:]) {
			t.Errorf("no table for the lengths %v", lengths)
		}
	}
}
