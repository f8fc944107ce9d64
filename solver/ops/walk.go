package ops

import (
	"context"
	"runtime"
	"strings"

	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
)

// selectBelow returns what is in a directory of the source, and not excluded, in tree order, with digests.
func (c *copying) selectBelow(tree layer.Tree, dir string) ([]*layer.Entry, error) {
	w := &walker{ctx: c.ctx, tree: tree, exclude: c.exclude, top: dir, room: make(chan struct{}, runtime.GOMAXPROCS(0))}
	list, err := tree.List(dir)
	if err != nil {
		return nil, err
	}
	if err := w.walk(list, ignore.Info{}); err != nil {
		return nil, err
	}
	return w.out, tree.Sum(c.ctx, w.out)
}

// walker collects what is in a directory. Directories are listed ahead of the walk, as many at a time as there are
// processors: most of the time of a build in which nothing changed goes into that.
type walker struct {
	ctx     context.Context
	tree    layer.Tree
	exclude *ignore.Matcher
	top     string
	room    chan struct{}
	out     []*layer.Entry
}

// aheadDirs is how many directories of one parent are listed ahead.
const aheadDirs = 32

// found is an entry with what the patterns say of it.
type found struct {
	entry    *layer.Entry
	excluded bool
	below    ignore.Info
	listing  chan listing // for a directory that is entered, once it is being listed
}

type listing struct {
	list []layer.Entry
	err  error
}

func (w *walker) walk(list []layer.Entry, info ignore.Info) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	all := make([]found, len(list))
	var dirs []*found
	for i := range list {
		f := &all[i]
		f.entry = &list[i]
		rel := strings.TrimPrefix(f.entry.Path[len(w.top):], "/")
		f.excluded, f.below = w.exclude.Ignored(rel, info)
		if f.entry.Type == layer.Dir && (!f.excluded || w.exclude.MayReinclude(rel)) {
			dirs = append(dirs, f)
		}
	}
	started := 0
	for i := range all {
		f := &all[i]
		if !f.excluded {
			w.out = append(w.out, f.entry)
		}
		if len(dirs) == 0 || dirs[0] != f {
			continue
		}
		for ; started < min(aheadDirs, len(dirs)); started++ {
			w.list(dirs[started])
		}
		dirs, started = dirs[1:], started-1
		n := len(w.out)
		l := <-f.listing
		if l.err != nil {
			return l.err
		}
		if err := w.walk(l.list, f.below); err != nil {
			return err
		}
		if f.excluded && len(w.out) > n {
			// An exception brought something back, and with it the directories on the way.
			w.out = append(w.out[:n], append([]*layer.Entry{f.entry}, w.out[n:]...)...)
		}
	}
	return nil
}

// list begins to list a directory. Whether or not anybody waits for it, it comes to its end.
func (w *walker) list(f *found) {
	f.listing = make(chan listing, 1)
	go func() {
		w.room <- struct{}{}
		defer func() { <-w.room }()
		list, err := w.tree.List(f.entry.Path)
		f.listing <- listing{list, err}
	}()
}
