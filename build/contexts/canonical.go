package contexts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
)

// modTime is that of all files of the contexts of a reproducible build.
func modTime() time.Time { return time.Unix(llb.ReproducibleTime, 0) }

// canonical is a tree as git would record it: see localdir.Dir.Canonical.
type canonical struct {
	layer.Tree
	keepGit bool
}

func (c canonical) hides(path string) bool { return !c.keepGit && layer.InGitDir(path) }

// Lookup implements layer.Tree.
func (c canonical) Lookup(path string) (layer.Entry, bool, error) {
	if c.hides(path) {
		return layer.Entry{}, false, nil
	}
	e, ok, err := c.Tree.Lookup(path)
	if ok {
		e.Canonical(modTime())
	}
	return e, ok, err
}

// List implements layer.Tree.
func (c canonical) List(dir string) ([]layer.Entry, error) {
	list, err := c.Tree.List(dir)
	list = slices.DeleteFunc(slices.Clone(list), func(e layer.Entry) bool { return c.hides(e.Path) })
	for i := range list {
		list[i].Canonical(modTime())
	}
	return list, err
}

// Sum implements layer.Tree.
func (c canonical) Sum(ctx context.Context, entries []*layer.Entry) error {
	err := c.Tree.Sum(ctx, entries)
	for _, e := range entries {
		e.Canonical(modTime())
	}
	return err
}

// CommitTime is frontend.Options.CommitTime: the time of the commit of a context that is a git repository, or a directory in one. The error
// for any other is an *input.Error.
func (l *Loader) CommitTime(ctx context.Context) (time.Time, error) {
	var made time.Time
	var err error
	switch {
	case remoteurl.IsGitContext(l.Context):
		return l.SourceTime(ctx, nil)
	case isDir(l.Context):
		made, err = git.HeadTime(ctx, l.Context, rootdir.Shown(l.Context))
	default:
		err = errors.New("the context is neither a git repository nor a directory in one")
	}
	if err != nil && ctx.Err() == nil {
		err = &input.Error{Err: fmt.Errorf("a reproducible build has the time of the context's commit: %w; "+
			"give another with --build-arg SOURCE_DATE_EPOCH=SECONDS", err)}
	}
	return made, err
}
