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

// NotFoundError is a source that does not exist.
type NotFoundError struct {
	Path string
	// Ignored is what of .dockerignore excludes it; nil where nothing does.
	Ignored *ignore.Reason
	// Similar is a path that exists and was probably meant; "" for none.
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

// NotFound returns the error for a path of a tree, which is physical where links are followed.
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

// similar returns the path that is nearly the given one: one of its components has another name, "" where there is none.
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
		// Any two short names are nearly the same.
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
