package files

import (
	"context"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
)

// endless is a tree in which each directory has a directory a and a file x, depth levels deep, that counts how often one is listed.
type endless struct {
	nested
	depth, lists int
}

func (e *endless) List(dir string) ([]layer.Entry, error) {
	e.lists++
	list := []layer.Entry{{Path: join(dir, "x"), Type: layer.File}}
	if strings.Count(dir, "a") < e.depth {
		list = append([]layer.Entry{{Path: join(dir, "a"), Type: layer.Dir}}, list...)
	}
	return list, nil
}

// Each directory is listed once, however many "**" a pattern has: else it would be 2 to the power of the depth.
func TestSelectionOfManyStars(t *testing.T) {
	tree := &endless{depth: 100}
	c := &copying{maker: maker{run: &run{ctx: context.Background()}}}
	for _, pattern := range []string{strings.Repeat("**/a/", 40) + "y", strings.Repeat("**/", 40) + "y", strings.Repeat("**/*/", 90) + "x"} {
		var found []*layer.Entry
		tree.lists = 0
		if err := c.walkParents(tree, "", "", selectionOf(components(pattern)), ignore.Info{}, &found); err != nil {
			t.Fatal(err)
		}
		if tree.lists > tree.depth+1 || (len(found) > 0) != strings.HasSuffix(pattern, "x") {
			t.Errorf("%s: %d directories were listed, and %d entries found", pattern, tree.lists, len(found))
		}
	}
}

// A selection takes what a way through all ways to read its "**" takes.
func TestSelection(t *testing.T) {
	var whole func(parts, names []string) bool
	whole = func(parts, names []string) bool { // or something above names
		switch {
		case len(parts) == 0:
			return true
		case len(names) == 0:
			return false
		case parts[0] == "**":
			return len(parts) == 1 || whole(parts[1:], names) || whole(parts, names[1:])
		}
		ok, _ := path.Match(parts[0], names[0])
		return ok && whole(parts[1:], names[1:])
	}
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from []string, most int) (out []string) {
		for range 1 + random.IntN(most) {
			out = append(out, from[random.IntN(len(from))])
		}
		return out
	}
	for range 100000 {
		parts, names := pick([]string{"**", "a", "b", "*", "a*"}, 6), pick([]string{"a", "b", "ab"}, 6)
		got := false
		s := selectionOf(parts)
		for _, name := range names {
			taken, rest := s.step(name)
			if got = got || taken; taken {
				break
			}
			if s = rest; len(s.at) > len(parts) {
				t.Fatalf("%q: the places %v", parts, s.at)
			}
		}
		if want := whole(parts, names); got != want {
			t.Fatalf("%q takes %q: %v", parts, names, got)
		}
	}
}
