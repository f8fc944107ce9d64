package snapshot

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
)

// A layer of many files of which most are as they were in the layer that its step made before has in fs only those that are not, over
// that earlier layer: as lower directories of an overlay the two are what the layer alone would be. So to change a file costs what
// that file does. Which files are where follows from the two manifests, and an earlier layer is never one that is over another.

// overNote holds the id of the layer that a layer is over, whose manifest says that it is over one. A layer whose earlier layer is not
// there is not there either.
const overNote = "over"

// overEntries is how many entries the earlier layer must have: a small layer is quickly made of links. overShare is the share of them of
// which the layer may have others in fs, and overMost how many at most.
const (
	overEntries = 1024
	overShare   = 8
	overMost    = 4096
)

// ErrNotOver is the error of a Builder for a layer that cannot be made over an earlier one, because that has what the layer has
// not, or too much is different: it is to be made again, alone.
var ErrNotOver = errors.New("BUG: a layer that cannot be over the earlier one was to be made so")

// Under returns the layer that a layer is over; "" for one that has all its files, or is not there.
func (s *Store) Under(id string) string {
	if !validID(id) {
		return ""
	}
	note, err := os.ReadFile(filepath.Join(s.dir, id, overNote))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(note), "\n")
}

// under is Under for a layer with this manifest.
func (s *Store) under(id string, m *layer.Manifest) string {
	if !m.Over {
		return ""
	}
	return s.Under(id)
}

// holdUnder holds the layer that a layer with this manifest is over, if it is. s.mu is held.
func (s *Store) holdUnder(id string, m *layer.Manifest) error {
	if !m.Over {
		return nil
	}
	under := s.Under(id)
	below, err := s.manifest(under)
	if err == nil && (below.Over || s.isPacked(under)) {
		err = layer.ErrDamaged // kiln makes no such layers
	}
	if err != nil {
		return fmt.Errorf("the layer that layer %s is over: %w", id, err)
	}
	return nil
}

// Over reports whether the layer is made over an earlier one, once its Builder has finished. Its manifest is to say so.
func (p *Pending) Over() bool { return p.over != "" }

// layerFiles are the files of a layer.
type layerFiles struct {
	id    string
	root  *rootfs.Root
	own   map[string]bool // paths that are in root, but for directories; nil for all
	under *layerFiles     // that has the others; nil for none
}

// at returns the layer whose directory has the file at a path of the layer.
func (f *layerFiles) at(path string) *layerFiles {
	if f.under == nil || f.own[path] {
		return f
	}
	return f.under
}

// differing returns the paths of m, but for directories, that are not as they are in under: those that are in the directory of a layer
// that is over that. A further name of a file goes with the file.
func differing(m, under *layer.Manifest) map[string]bool {
	own := map[string]bool{}
	at := 0
	for e := range m.All() {
		if e.Type == layer.Dir {
			continue
		}
		i, ok := under.FindFrom(at, e.Path)
		if ok {
			at = i + 1
		}
		if !ok || !under.Same(i, e) || e.Type == layer.Hardlink && own[e.Link] {
			own[e.Path] = true
		}
	}
	return own
}

// over is how a layer is written that is over an earlier one.
type over struct {
	id    string
	under *layer.Manifest
	at    int                     // where the next entry probably is in under
	seen  int                     // how many of under's paths the layer has
	room  int                     // how many more may be different
	own   map[string]bool         // what is in the layer's directory, but for directories
	dirs  map[string]*layer.Entry // directories that are not
}

// newOver returns how a layer is made over one that its step made before; nil if it is not to be.
func (s *Store) newOver(earlier string) *over {
	if s.copies() {
		return nil
	}
	m, err := s.Manifest(earlier)
	if err == nil && m.Over {
		earlier = s.Under(earlier)
		m, err = s.Manifest(earlier)
	}
	if err != nil || m.Entries < overEntries || !m.Plain || m.Implied || s.isPacked(earlier) {
		return nil
	}
	return &over{id: earlier, under: m, room: min(m.Entries/overShare, overMost), own: map[string]bool{}, dirs: map[string]*layer.Entry{}}
}

// find returns the number of a path in the earlier layer, and counts it.
func (o *over) find(path string) (int, bool) {
	i, ok := o.under.FindFrom(o.at, path)
	if ok {
		o.at = i + 1
		o.seen++
	}
	return i, ok
}

// put notes an entry, and reports whether it has to be written. The entries come in the order of layer.Compare, but for directories,
// which may come again.
func (o *over) put(d *disk, e *layer.Entry) (write bool, err error) {
	if e.Type == layer.Whiteout || e.Opaque || e.Implied {
		return false, ErrNotOver
	}
	i, ok := o.find(e.Path)
	if ok && (o.under.Type(i) == layer.Dir) != (e.Type == layer.Dir) {
		return false, ErrNotOver
	}
	if e.Type == layer.Dir {
		dir := *e
		o.dirs[e.Path] = &dir
		return false, nil
	}
	moved := e.Type == layer.Hardlink && o.own[e.Link]
	if ok && !moved && o.under.Same(i, e) {
		return false, nil
	}
	if e.Type == layer.Hardlink && !moved {
		return false, ErrNotOver
	}
	if o.room--; o.room < 0 {
		return false, ErrNotOver
	}
	o.own[e.Path] = true
	return true, o.makeDir(d, layer.Parent(e.Path))
}

// makeDir makes a directory of the layer in the layer's directory, and those above it.
func (o *over) makeDir(d *disk, path string) error {
	e, ok := o.dirs[path]
	if !ok {
		return nil
	}
	if err := o.makeDir(d, layer.Parent(path)); err != nil {
		return err
	}
	delete(o.dirs, path)
	return d.write(e, nil)
}

// finish makes the directories that are not as they were, and reports whether the layer has all that the earlier one has.
func (o *over) finish(d *disk, dirs iter.Seq2[*dirNode, string]) error {
	if o.seen != o.under.Entries {
		return ErrNotOver
	}
	for n, path := range dirs {
		if _, missing := o.dirs[path]; !missing {
			continue
		}
		if n.idle {
			if o.under.Find(path) >= 0 {
				return ErrNotOver
			}
			continue
		}
		e := n.entry(path)
		if i := o.under.Find(path); i < 0 || !o.under.Same(i, &e) {
			if err := o.makeDir(d, path); err != nil {
				return err
			}
		}
	}
	return nil
}
