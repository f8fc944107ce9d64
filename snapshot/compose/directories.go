package compose

import (
	"iter"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
)

// dirTree holds the directories of a layer under construction, and the directories of lower layers that paths have passed through
// so far. A directory stores its name and not its path, so that long paths in deep trees take little memory.
type dirTree struct {
	top  *dirNode
	at   map[inDir]*dirNode
	made int          // number of the layer's own directories created so far
	dead map[int]bool // numbers of the directories that were removed
	// The directory that was looked up last: the next path is usually in the same one.
	lastPath string
	last     *dirNode
}

// inDir is a name in a directory.
type inDir struct {
	in   *dirNode
	name string
}

// dirNode is a directory of the layer or of a lower layer. Its entry has no path.
type dirNode struct {
	layer.Entry
	name string
	up   *dirNode // nil for the root
	// first is the first subdirectory; next and prev link the subdirectories of one parent.
	first, next, prev *dirNode
	// number is unique to each of the layer's own directories, even if one replaces another at the same path. It is 0 for the root,
	// and noDirectory for a directory of a lower layer.
	number int
	// mine reports that the directory is part of the layer, below that it is known to exist in the lower layers.
	mine, below bool
	// alone reports that the directory hides everything that lower layers have in it.
	alone bool
	// idle reports that the directory is omitted from the layer: see Trim.
	idle bool
	// held reports that the directory is among the Builder's held directories.
	held bool
	// gone reports that the directory was removed from the tree.
	gone bool
}

// noDirectory is the number of directories that are not part of the layer.
const noDirectory = -1

func newDirTree() dirTree {
	return dirTree{top: &dirNode{}, at: map[inDir]*dirNode{}, dead: map[int]bool{}}
}

func (n *dirNode) entry(path string) layer.Entry {
	e := n.Entry
	e.Path = path
	return e
}

// remember caches the directory at a path.
func (t *dirTree) remember(path string, n *dirNode) { t.lastPath, t.last = path, n }

// child returns the subdirectory name of in, or nil if it is not known. Most directories contain only files, so a lookup is
// usually not needed.
func (t *dirTree) child(in *dirNode, name string) *dirNode {
	if in.first == nil {
		return nil
	}
	return t.at[inDir{in, name}]
}

// find returns the directory at a path, or nil if it is not known.
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

// own returns the layer's own directory at a path. If it does not exist, own creates it if make is set and its parent exists, and
// returns nil otherwise.
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

// add adds a directory that is not part of the layer to up.
func (t *dirTree) add(up *dirNode, name string) *dirNode {
	n := &dirNode{name: strings.Clone(name), up: up, next: up.first, number: noDirectory}
	if n.next != nil {
		n.next.prev = n
	}
	up.first = n
	t.at[inDir{up, n.name}] = n
	return n
}

// remove removes a directory and everything below it.
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

// hide records that a directory hides everything that lower layers have in it.
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
