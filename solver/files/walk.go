package files

import (
	"context"
	"runtime"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
)

// below calls yield for each entry in a source directory that is not excluded, in tree order, with digests.
func (c *copying) below(tree layer.Tree, dir string, yield func(*layer.Entry) error) error {
	w := &walker{ctx: c.ctx, tree: tree, exclude: c.exclude, include: c.include, top: dir, room: make(chan struct{}, runtime.GOMAXPROCS(0))}
	l := w.look(dir, ignore.Info{}, ignore.Info{})
	if l.err != nil {
		return l.err
	}
	return w.walk(l.found, yield)
}

// walker traverses a directory. It lists directories ahead of the traversal, and reads files whose digests are not known, as many
// at once as there are processors: most of the time of a build in which nothing changed is spent here.
type walker struct {
	ctx     context.Context
	tree    layer.Tree
	exclude *ignore.Matcher
	include *ignore.Matcher // what is taken; nil for everything
	top     string
	room    chan struct{}
}

// aheadDirs is the number of directories of one parent that are listed ahead.
const aheadDirs = 32

// found is an entry and the result of matching it against the patterns.
type found struct {
	entry    *layer.Entry
	excluded bool
	below    ignore.Info
	included ignore.Info  // as below, of the patterns of what is taken
	enter    bool         // a directory whose contents may not all be excluded
	listing  chan listing // receives the contents, once listing has started
}

type listing struct {
	found []found
	err   error
}

// look lists a directory. excluded and included are the states of pattern matching for it.
func (w *walker) look(dir string, excluded, included ignore.Info) listing {
	list, err := w.tree.List(dir)
	if err != nil {
		return listing{err: err}
	}
	all := make([]found, len(list))
	var wanted []*layer.Entry
	for i := range list {
		if err := ctxio.Ended(w.ctx); err != nil {
			return listing{err: err}
		}
		f := &all[i]
		f.entry = &list[i]
		rel := strings.TrimPrefix(f.entry.Path[len(w.top):], "/")
		f.excluded, f.below = w.exclude.Ignored(rel, excluded)
		f.enter = f.entry.Type == layer.Dir && (!f.excluded || w.exclude.MayReinclude(rel))
		if w.include != nil {
			var taken bool
			taken, f.included = w.include.Ignored(rel, included)
			f.excluded = f.excluded || !taken
		}
		if !f.excluded && f.entry.Type == layer.File {
			wanted = append(wanted, f.entry)
		}
	}
	err = w.tree.Sum(w.ctx, wanted)
	all = slices.DeleteFunc(all, func(f found) bool { return f.entry.Type == layer.Whiteout })
	return listing{all, err}
}

// ahead starts to list a directory. It completes even if the result is not used.
func (w *walker) ahead(f *found) {
	f.listing = make(chan listing, 1)
	go func() {
		w.room <- struct{}{}
		defer func() { <-w.room }()
		f.listing <- w.look(f.entry.Path, f.below, f.included)
	}()
}

func (w *walker) walk(all []found, yield func(*layer.Entry) error) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	var dirs []*found
	for i := range all {
		if all[i].enter {
			dirs = append(dirs, &all[i])
		}
	}
	started := 0
	for i := range all {
		f := &all[i]
		if !f.excluded {
			if err := yield(f.entry); err != nil {
				return err
			}
		}
		if !f.enter {
			continue
		}
		for ; started < min(aheadDirs, len(dirs)); started++ {
			w.ahead(dirs[started])
		}
		dirs, started = dirs[1:], started-1
		l := <-f.listing
		f.listing = nil
		if l.err != nil {
			return l.err
		}
		inside := yield
		if f.excluded {
			// An exception may reinclude an entry in the directory, and with it the directory itself, which must precede it.
			dir := f.entry
			inside = func(e *layer.Entry) error {
				if dir != nil {
					d := dir
					dir = nil
					if err := yield(d); err != nil {
						return err
					}
				}
				return yield(e)
			}
		}
		if err := w.walk(l.found, inside); err != nil {
			return err
		}
	}
	return nil
}
