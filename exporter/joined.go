package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
)

// Joined returns one tree of root file systems, each in its Dir. Directories at the same path are one, which is as the first root has it; a
// path that is something else in more than one root is an *input.Error. The tree can be listed and its files opened.
func Joined(roots []Root) layer.Tree {
	if len(roots) == 1 && roots[0].Dir == "" {
		return roots[0].Tree
	}
	return joined(roots)
}

type joined []Root

// in returns what a path of the joined tree is in a root; false if it is outside of it.
func (r Root) in(path string) (string, bool) {
	switch {
	case r.Dir == "":
		return path, true
	case path == r.Dir:
		return "", true
	}
	return strings.CutPrefix(path, r.Dir+"/")
}

// joinedTime is the time of the directories that roots are in, as in WriteTar.
var joinedTime = time.Unix(0, 0)

func (r Root) top() layer.Entry {
	return layer.Entry{Path: r.Dir, Type: layer.Dir, Mode: 0o755, ModTime: joinedTime}
}

// Lookup implements layer.Tree.
func (j joined) Lookup(path string) (layer.Entry, bool, error) {
	for i, r := range j {
		own, ok := r.in(path)
		if !ok {
			continue
		}
		if own == "" && r.Dir != "" {
			return r.top(), true, nil
		}
		if e, ok, err := r.Tree.Lookup(own); ok || err != nil {
			return j.entry(i, e), ok, err
		}
	}
	return layer.Entry{}, false, nil
}

// entry returns an entry of a root as it is in the joined tree.
func (j joined) entry(i int, e layer.Entry) layer.Entry {
	e.Path = layer.Join(j[i].Dir, e.Path)
	if e.LinkID != "" {
		e.LinkID = strconv.Itoa(i) + ":" + e.LinkID
	}
	return e
}

// List implements layer.Tree.
func (j joined) List(dir string) ([]layer.Entry, error) {
	var all []layer.Entry
	for i, r := range j {
		if r.Dir != "" && dir == "" {
			all = append(all, r.top())
			continue
		}
		own, ok := r.in(dir)
		if !ok {
			continue
		}
		list, err := r.Tree.List(own)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			all = append(all, j.entry(i, e))
		}
	}
	slices.SortStableFunc(all, func(a, b layer.Entry) int { return layer.Compare(a.Path, b.Path) })
	for i := 1; i < len(all); i++ {
		if a, b := all[i-1], all[i]; a.Path == b.Path && (a.Type != layer.Dir || b.Type != layer.Dir) {
			return nil, &input.Error{Err: fmt.Errorf("cannot overwrite %s from one platform with that of another when split option is disabled: "+
				"platform-split=true gives each a directory of its own", layer.Clip(a.Path))}
		}
	}
	return slices.CompactFunc(all, func(a, b layer.Entry) bool { return a.Path == b.Path }), nil
}

// Sum implements layer.Tree.
func (j joined) Sum(context.Context, []*layer.Entry) error { return errors.ErrUnsupported }

// Open implements layer.Tree.
func (j joined) Open(e *layer.Entry) (io.ReadCloser, error) {
	for _, r := range j {
		own, ok := r.in(e.Path)
		if !ok {
			continue
		}
		there, ok, err := r.Tree.Lookup(own)
		if err != nil {
			return nil, err
		}
		if ok && there.Type == layer.File {
			return r.Tree.Open(&there)
		}
	}
	return nil, &layer.ChangedError{Path: e.Path}
}
