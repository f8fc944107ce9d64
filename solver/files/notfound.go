package files

import (
	"fmt"
	"path"
	"strings"

	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/suggest"
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

// NoMatchError is returned for a source with wildcards that selects nothing.
type NoMatchError struct {
	Pattern string
	// Excluded is what would match if Ignored, a pattern in .dockerignore, did not exclude it; "" for nothing.
	Excluded string
	Ignored  ignore.Reason
	// Dir is the last directory before the first wildcard, and Names are some of the names in it, of which there are More.
	Dir   string
	Names []string
	More  int
}

func (e *NoMatchError) Error() string {
	s := fmt.Sprintf("%q: no file matches", e.Pattern)
	switch {
	case e.Excluded != "":
		s += fmt.Sprintf(": /%s is excluded by %s", e.Excluded, e.Ignored)
	case len(e.Names) == 0:
		s += fmt.Sprintf(": there is nothing in /%s", e.Dir)
	case e.More > 0:
		s += fmt.Sprintf(": /%s has %s and %d more", e.Dir, strings.Join(e.Names, ", "), e.More)
	default:
		s += fmt.Sprintf(": /%s has %s", e.Dir, strings.Join(e.Names, ", "))
	}
	return s
}

// maxHave is how many names of a directory an error has.
const maxHave = 4

// everything is a tree with what patterns exclude.
type everything struct{ layer.Tree }

func (t everything) List(path string) ([]layer.Entry, error) {
	if d, ok := t.Tree.(ignoring); ok {
		return d.ListAll(path)
	}
	return t.Tree.List(path)
}

// noMatch returns the error for a source of a tree with wildcards.
func noMatch(tree layer.Tree, pattern string) *NoMatchError {
	err := &NoMatchError{Pattern: pattern}
	if d, ok := tree.(ignoring); ok {
		all, _ := glob(everything{tree}, pattern, true)
		for _, name := range all {
			if reason, ok := d.Ignored(name); ok {
				err.Excluded, err.Ignored = name, reason
				return err
			}
		}
	}
	literal, _ := split(pattern)
	base, _, lookErr := compose.Resolve(tree.Lookup, literal, true)
	if lookErr != nil {
		base = literal
	}
	err.Dir = base
	list, _ := tree.List(base)
	for _, e := range list[:min(len(list), maxHave)] {
		err.Names = append(err.Names, layer.Clip(e.Name()))
	}
	err.More = len(list) - len(err.Names)
	return err
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
	err.Similar = meant(tree, physical)
	return err
}

// meant returns an existing path that differs from name in one similar component, or "".
func meant(tree layer.Tree, name string) string {
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
		match := suggest.Nearest(part, names...)
		// Short names are all similar.
		if match == "" || len(part) < 3 && !strings.EqualFold(match, part) {
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
