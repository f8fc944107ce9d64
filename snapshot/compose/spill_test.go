package compose

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/layer"
)

// Entries that are put, replaced and removed in any order are those that a map would have, in order, whether they are in memory,
// in the file, or sorted in parts.
func TestSpill(t *testing.T) {
	for name, n := range map[string]int{"none": 0, "few": 50, "in the file": 20_000, "in parts": 150_000} {
		t.Run(name, func(t *testing.T) {
			tmp := t.TempDir()
			l := newSpill(tmp)
			defer l.close()
			random := rand.New(rand.NewPCG(1, 2))
			want := map[string]string{}
			long := strings.Repeat("x", 700) // longer than what is read at once
			for i := range n {
				dir := random.IntN(100)
				path := fmt.Sprintf("%d/%d", dir, random.IntN(n))
				if random.IntN(10) == 0 {
					if err := l.remove(dir, base(path)); err != nil {
						t.Fatal(err)
					}
					delete(want, path)
					continue
				}
				link := fmt.Sprint(i)
				if i%1000 == 0 {
					link += long
				}
				if err := l.put(&leaf{Entry: layer.Entry{Path: path, Type: layer.Symlink, Link: link}, in: dir}); err != nil {
					t.Fatal(err)
				}
				want[path] = link
			}
			for path, link := range want {
				dir, _ := strconv.Atoi(layer.Parent(path))
				if e, ok, err := l.get(dir, base(path)); err != nil || !ok || e.Link != link {
					t.Fatalf("%s is %q, %v, %v; want %q", path, e.Link, ok, err, link)
				}
			}
			if _, ok, err := l.get(0, "no such path"); ok || err != nil {
				t.Error(ok, err)
			}
			paths := slices.SortedFunc(maps.Keys(want), layer.Compare)
			at := 0
			err := l.sorted(func(*leaf) bool { return true }, func(e *leaf) error {
				if at == len(paths) || e.Path != paths[at] || e.Link != want[e.Path] {
					t.Fatalf("entry %d is %s with %q", at, e.Path, e.Link)
				}
				at++
				return nil
			})
			if err != nil || at != len(paths) {
				t.Errorf("%d entries of %d: %v", at, len(paths), err)
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
				t.Errorf("there are files: %v, %v", left, err)
			}
		})
	}
}

// Paths whose hashes collide are distinguished, also after one of them is removed.
func TestSpillCollisions(t *testing.T) {
	l := newSpill(t.TempDir())
	defer l.close()
	put := func(path string) {
		if err := l.put(&leaf{Entry: layer.Entry{Path: path, Type: layer.Fifo}}); err != nil {
			t.Fatal(err)
		}
	}
	has := func(want ...string) {
		t.Helper()
		for _, path := range []string{"a", "b"} {
			if _, ok, err := l.get(0, path); err != nil || ok != slices.Contains(want, path) {
				t.Errorf("%s is there: %v, %v", path, ok, err)
			}
		}
	}
	put("a")
	// b's number is taken by a.
	l.at[l.hash(0, "b")] = l.at[l.hash(0, "a")]
	put("b")
	has("a", "b")
	l.at[l.hash(0, "b")] = removed
	has("a", "b")
	put("b")
	has("a", "b")
	if err := l.remove(0, "b"); err != nil {
		t.Fatal(err)
	}
	has("a")
	put("b")
	has("a", "b")
}
