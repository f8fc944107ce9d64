package layer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// Above and OpaqueAbove find what a way up through all directories finds.
func TestAbove(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	path := func() string {
		parts := make([]string, random.IntN(6))
		for i := range parts {
			parts[i] = []string{"a", "b", "a-b", "a.b", "ab", "ä"}[random.IntN(6)]
		}
		return strings.Join(parts, "/")
	}
	for range 300 {
		byPath := map[string]*Entry{}
		for range random.IntN(20) {
			p := path()
			if byPath[p] == nil {
				byPath[p] = &Entry{Path: p, Type: []Type{Dir, Dir, File, Whiteout}[random.IntN(4)], ModTime: t0}
			}
			for dir := p; dir != ""; {
				dir = Parent(dir)
				byPath[dir] = &Entry{Path: dir, Type: Dir, Opaque: random.IntN(5) == 0, ModTime: t0}
			}
		}
		if random.IntN(2) == 0 {
			delete(byPath, "")
		}
		var list []*Entry
		for _, e := range byPath {
			list = append(list, e)
		}
		slices.SortFunc(list, func(x, y *Entry) int { return Compare(x.Path, y.Path) })
		m, err := OpenManifest(write(t, list))
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			p := path()
			var above *Entry
			opaque := false
			for dir := p; dir != ""; {
				dir = Parent(dir)
				if e := byPath[dir]; e != nil {
					if above == nil {
						above = e
					}
					opaque = opaque || e.Opaque
				}
			}
			got, ok := m.Above(p)
			if ok != (above != nil) || ok && got.Path != above.Path {
				t.Errorf("above %q is %q, %v; want %v", p, got.Path, ok, above)
			}
			if m.OpaqueAbove(p) != opaque {
				t.Errorf("something above %q is opaque: %v, want %v", p, !opaque, opaque)
			}
		}
		m.Close()
	}
}

func TestCompareLong(t *testing.T) {
	for n := 50; n < 200; n++ {
		a, b := strings.Repeat("x", n)+"/b", strings.Repeat("x", n)+"-b"
		if Compare(a, b) >= 0 || Compare(b, a) <= 0 || Compare(a, a) != 0 || Compare(a, a+"/c") >= 0 || Compare(fmt.Sprint(b, "c"), b) <= 0 {
			t.Errorf("after %d bytes in common: no order", n)
		}
	}
}
