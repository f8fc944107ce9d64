package compose

import (
	"iter"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
)

// dirTree has the directories of a layer that is being made, and those below it that paths have led through so far. A directory has its own
// name alone and not its path, so paths may be long and the tree deep.
type dirTree struct {
	top  *dirNode
	at   map[inDir]*dirNode
	made int          // of the layer's directories so far
	dead map[int]bool // the numbers of those that are no more
	// The directory that was looked for last: the next path is mostly in the same one.
	lastPath string
	last     *dirNode
}

// inDir is a name in a directory.
type inDir struct {
	in   *dirNode
	name string
}

// dirNode is a directory of the layer, or one that lies below it. Its entry has no path.
type dirNode struct {
	layer.Entry
	name string
	up   *dirNode // nil for the root
	// first is one of the directories in it, next and prev are others in the same directory.
	first, next, prev *dirNode
	// number is another one for each directory of the layer that is made, also at the same path: 0 for the root, noDirectory for one that is
	// not the layer's.
	number int
	// mine says that it is the layer's own, below that it is known to be there without it.
	mine, below bool
	// alone says that nothing that lies below the layer can be seen in it.
	alone bool
	// idle says that the layer is not to have it: see Trim.
	idle bool
	// held says that it is among the Builder's held directories.
	held bool
	// gone says that it is not part of the tree any more.
	gone bool
}

// noDirectory is the number of no directory of the layer.
const noDirectory = -1

func newDirTree() dirTree {
	return dirTree{top: &dirNode{}, at: map[inDir]*dirNode{}, dead: map[int]bool{}}
}

// entry returns the directory's entry, with its path.
func (n *dirNode) entry(path string) layer.Entry {
	e := n.Entry
	e.Path = path
	return e
}

// remember notes which directory is at a path.
func (t *dirTree) remember(path string, n *dirNode) { t.lastPath, t.last = path, n }

// child returns a directory of another one; nil for none that is known. Most directories have files alone, and nothing is looked for there.
func (t *dirTree) child(in *dirNode, name string) *dirNode {
	if in.first == nil {
		return nil
	}
	return t.at[inDir{in, name}]
}

// find returns the directory at a path; nil for none that is known.
func (t *dirTree) find(path string) *dirNode {
	if path == "" {
		return t.top
	}
	if t.last != nil && !t.last.gone {
		if path == t.lastPath {
			return t.last
		}
		if layer.Parent(path) == t.lastPath {
			n := t.child(t.last, base(path))
			if n != nil {
				t.remember(path, n)
			}
			return n
		}
	}
	at := t.top
	for name := range strings.SplitSeq(path, "/") {
		if at = t.child(at, name); at == nil {
			return nil
		}
	}
	t.remember(path, at)
	return at
}

// own returns the layer's directory at a path. If there is none it is nil or, if it is to be made, a new one, unless
// there is no directory to make it in.
func (t *dirTree) own(path string, make bool) *dirNode {
	n := t.find(path)
	if !make || n != nil && n.mine {
		if n != nil && !n.mine {
			return nil
		}
		return n
	}
	if n == nil {
		up := t.find(layer.Parent(path))
		if up == nil {
			return nil
		}
		n = t.add(up, base(path))
	}
	n.mine = true
	if n != t.top {
		t.made++
		n.number = t.made
	}
	return n
}

// add puts a directory that is not the layer's into another.
func (t *dirTree) add(up *dirNode, name string) *dirNode {
	n := &dirNode{name: strings.Clone(name), up: up, next: up.first, number: noDirectory}
	if n.next != nil {
		n.next.prev = n
	}
	up.first = n
	t.at[inDir{up, n.name}] = n
	return n
}

// remove takes a directory out, and what is below it.
func (t *dirTree) remove(n *dirNode) {
	for n.first != nil {
		t.remove(n.first)
	}
	n.gone = true
	if n.mine {
		t.dead[n.number] = true
	}
	delete(t.at, inDir{n.up, n.name})
	if n.prev == nil {
		n.up.first = n.next
	} else {
		n.prev.next = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	}
}

// hide notes that nothing of what lies below the layer can be seen in a directory.
func (t *dirTree) hide(n *dirNode) {
	if n.alone {
		return
	}
	n.alone = true
	for in := n.first; in != nil; {
		next := in.next
		if in.mine {
			t.hide(in)
		} else {
			t.remove(in)
		}
		in = next
	}
}

// all yields the layer's directories with their paths, in the order of layer.Compare.
func (t *dirTree) all() iter.Seq2[*dirNode, string] {
	return func(yield func(*dirNode, string) bool) {
		if !t.top.mine || yield(t.top, "") {
			t.below(t.top, "", yield)
		}
	}
}

func (t *dirTree) below(n *dirNode, path string, yield func(*dirNode, string) bool) bool {
	var dirs []*dirNode
	for below := n.first; below != nil; below = below.next {
		if below.mine {
			dirs = append(dirs, below)
		}
	}
	slices.SortFunc(dirs, func(a, b *dirNode) int { return strings.Compare(a.name, b.name) })
	for _, dir := range dirs {
		p := layer.Join(path, dir.name)
		if !yield(dir, p) || !t.below(dir, p, yield) {
			return false
		}
	}
	return true
}
