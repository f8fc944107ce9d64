package files

import (
	"fmt"
	"path"
	"strings"

	"github.com/moby/buildkit/util/suggest"

	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// NotFoundError is returned for a source that does not exist.
type NotFoundError struct {
	Path string
	// Ignored is the pattern in .dockerignore that excludes it, or nil.
	Ignored *ignore.Reason
	// Similar is an existing path that was probably meant, or "".
	Similar string
}

func (e *NotFoundError) Error() string {
	switch {
	case e.Ignored != nil:
		return fmt.Sprintf("%q is excluded by %s", "/"+e.Path, e.Ignored)
	case e.Similar != "":
		return fmt.Sprintf("%q not found (did you mean %s?)", "/"+e.Path, e.Similar)
	}
	return fmt.Sprintf("%q not found", "/"+e.Path)
}

// NotFound returns the error for a path of a tree. physical is the path with symbolic links followed.
func NotFound(tree layer.Tree, name, physical string) error {
	err := &NotFoundError{Path: strings.TrimPrefix(path.Clean("/"+name), "/")}
	if d, ok := tree.(ignoring); ok {
		if reason, ok := d.Ignored(physical); ok {
			err.Ignored = &reason
			return err
		}
	}
	err.Similar = similar(tree, physical)
	return err
}

// similar returns an existing path that differs from name in one similar component, or "".
func similar(tree layer.Tree, name string) string {
	dir := ""
	parts := strings.Split(name, "/")
	for i, part := range parts {
		at, e, err := compose.Resolve(tree.Lookup, join(dir, part), true)
		if err == nil && e != nil {
			dir = at
			continue
		}
		list, err := tree.List(dir)
		if err != nil {
			return ""
		}
		names := make([]string, len(list))
		for i := range list {
			names[i] = list[i].Name()
		}
		match, ok := suggest.Search(part, names, false)
		// Short names are all similar.
		if !ok || len(part) < 3 {
			return ""
		}
		found := path.Join(append([]string{dir, match}, parts[i+1:]...)...)
		if _, e, err := compose.Resolve(tree.Lookup, found, true); err != nil || e == nil {
			return ""
		}
		return found
	}
	return ""
}
