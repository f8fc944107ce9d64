package files

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// finder is the part of layer.Tree that globbing needs.
type finder interface {
	Lookup(path string) (layer.Entry, bool, error)
	List(dir string) ([]layer.Entry, error)
}

// glob returns the paths in a tree that a source selects. A source without wildcards selects itself, whether or not it exists.
// Wildcards are those of path.Match and do not match slashes. Symbolic links to directories are followed before the first
// wildcard only; the last component before that only if follow is set.
func glob(tree finder, pattern string, follow bool) ([]string, error) {
	literal, parts := split(pattern)
	if len(parts) == 0 {
		return []string{literal}, nil
	}
	for _, p := range parts {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("the wildcard %q is malformed", pattern)
		}
	}
	base, e, err := compose.Resolve(tree.Lookup, literal, follow)
	if err != nil || e == nil || e.Type != layer.Dir {
		return nil, err
	}
	return match(tree, []string{base}, parts)
}

// split returns the path before the first component of a pattern that has a wildcard, and the components from there on.
func split(pattern string) (literal string, rest []string) {
	parts := components(pattern)
	n := 0
	for n < len(parts) && !wild(parts[n]) {
		parts[n] = unescape(parts[n])
		n++
	}
	return strings.Join(parts[:n], "/"), parts[n:]
}

// unmatched returns the error, if any, for a source that selects nothing in the directory literal. BuildKit looks for the
// directory in the part of the source that it has loaded: for a context, the paths selected by all sources of the build, with
// their directories.
func (c *copying) unmatched(tree layer.Tree, src llb.CopySource, literal string) error {
	if literal == "" {
		c.nothing = append(c.nothing, noMatch(tree, src.Path))
		return nil
	}
	base, e, err := compose.Resolve(tree.Lookup, literal, true)
	if err != nil {
		return err
	}
	if e == nil {
		return NotFound(tree, literal, base)
	}
	failed := noMatch(tree, src.Path)
	used := true
	if c.Inputs[src.Input].Selected != nil {
		used, err = c.uses(tree, src.Input, base, e)
	}
	if used && err == nil {
		c.nothing = append(c.nothing, failed)
		return nil
	}
	return cmp.Or(err, error(failed))
}

// uses reports whether BuildKit would load the entry e of a context: whether it is, is in, or contains a path selected by a
// source of the build. For this purpose "**" matches any number of directories, and nothing is excluded.
func (c *copying) uses(tree layer.Tree, input int, at string, e *layer.Entry) (bool, error) {
	plain := copying{maker: maker{run: &run{ctx: c.ctx}}} // without --exclude
	for _, selection := range c.Inputs[input].Selected {
		left := selectionOf(components(selection))
		for _, name := range components(at) {
			taken, rest := left.step(name)
			if taken {
				return true, nil
			}
			left = rest
		}
		if e.Type == layer.Dir && len(left.at) > 0 {
			var found []*layer.Entry
			if err := plain.walkParents(tree, at, at, left, ignore.Info{}, &found); err != nil || len(found) > 0 {
				return len(found) > 0, err
			}
		}
		// A source may lead to the entry through symbolic links.
		matches, err := glob(tree, selection, true)
		if err != nil {
			continue // reported by the step with that source
		}
		for _, m := range matches {
			to, found, err := compose.Resolve(tree.Lookup, m, true)
			if err == nil && found != nil && (layer.Within(to, at) || layer.Within(at, to)) {
				return true, nil
			}
		}
	}
	return false, nil
}

// match returns the paths that the pattern's components select in directories, in tree order for each directory.
func match(tree finder, dirs, parts []string) ([]string, error) {
	for i, part := range parts {
		var next []string
		for _, dir := range dirs {
			list, err := tree.List(dir)
			if err != nil {
				return nil, err
			}
			for _, e := range list {
				ok, err := path.Match(part, e.Name())
				if err != nil {
					return nil, err
				}
				if ok && (i == len(parts)-1 || e.Type == layer.Dir) {
					next = append(next, e.Path)
				}
			}
		}
		dirs = next
	}
	return dirs, nil
}

// components splits a source into its cleaned components. The root has none.
func components(p string) []string {
	p = path.Clean("/" + p)
	if p == "/" {
		return nil
	}
	return strings.Split(p[1:], "/")
}

func wild(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// parents copies a source of COPY --parents: selected paths keep their parent directories or, if the source contains "/./", those
// after it.
func (c *copying) parents(tree layer.Tree, src llb.CopySource) error {
	before, after, pivot := cutPivot(src.Path)
	bases := []string{""}
	if pivot {
		var err error
		if bases, err = glob(tree, before, true); err != nil {
			return err
		}
	}
	dest, _, err := c.b.Resolve(c.op.Dest, true)
	if err != nil {
		return err
	}
	for _, base := range bases {
		c.links = map[string]string{}
		physical, e, err := compose.Resolve(tree.Lookup, base, true)
		if err != nil {
			return err
		}
		if e == nil && wild(before) {
			continue
		}
		if e == nil {
			return NotFound(tree, base, physical)
		}
		if wild(before) && c.Inputs[src.Input].Selected != nil {
			if used, err := c.uses(tree, src.Input, physical, e); err != nil {
				return err
			} else if !used {
				continue
			}
		}
		if e.Type != layer.Dir {
			if err := c.copyAsIs(tree, src, base, dest, e); err != nil {
				return err
			}
			continue
		}
		if err := c.b.Mkdirs(dest, c.newDir); err != nil {
			return err
		}
		if !pivot {
			e = nil
		}
		n, err := c.pattern(tree, physical, after, dest, e, !wild(before))
		if err != nil {
			return err
		}
		if n == 0 && pivot && !wild(before) {
			if err := c.unmatched(tree, src, base); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyAsIs handles a base before "/./" that is not a directory, like BuildKit: if the source has wildcards, the file is copied.
func (c *copying) copyAsIs(tree layer.Tree, src llb.CopySource, base, dest string, e *layer.Entry) error {
	if !wild(src.Path) {
		return NotFound(tree, base, e.Path)
	}
	if err := c.unmatched(tree, src, base); err != nil {
		return err
	}
	if err := c.b.Mkdirs(layer.Parent(dest), c.newDir); err != nil {
		return err
	}
	if strings.HasSuffix(c.op.Dest, "/") {
		if err := c.b.Mkdirs(dest, c.newDir); err != nil {
			return err
		}
	}
	target, err := c.target(dest, path.Base("/"+base))
	if err != nil {
		return err
	}
	return c.leaf(tree, *e, target)
}

// cutPivot splits a source at the first "/./" that is not at its start or end.
func cutPivot(p string) (before, after string, ok bool) {
	p = strings.TrimPrefix(p, "./")
	before, after, ok = strings.Cut(p, "/./")
	if !ok || strings.Trim(after, "/.") == "" {
		return "", p, false
	}
	return before, after, true
}

// pattern copies the paths that pattern selects in base, with their parent directories up to base, to dest, and returns their
// number. pivot is the entry of base if it precedes a "/./". required reports that a pattern without wildcards must select
// something.
func (c *copying) pattern(tree layer.Tree, base, pattern, dest string, pivot *layer.Entry, required bool) (int, error) {
	parts := components(pattern)
	for i, p := range parts {
		if wild(p) {
			required = false
			if _, err := path.Match(p, ""); err != nil {
				return 0, fmt.Errorf("the wildcard %q is malformed", pattern)
			}
		} else {
			parts[i] = unescape(p)
		}
	}
	var selected []*layer.Entry
	if err := c.walkParents(tree, base, base, selectionOf(parts), ignore.Info{}, &selected); err != nil {
		return 0, err
	}
	if len(selected) == 0 && required {
		name := join(base, strings.Join(parts, "/"))
		_, ok, err := tree.Lookup(name)
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, NotFound(tree, name, name)
		}
		if len(c.op.Exclude) > 0 {
			return 0, fmt.Errorf("%q: not found: --exclude excludes all of it", "/"+name)
		}
	}
	if err := tree.Sum(c.ctx, selected); err != nil {
		return 0, err
	}
	selected = slices.DeleteFunc(selected, func(e *layer.Entry) bool { return e.Type == layer.Whiteout })
	if pivot != nil && dest != "" {
		// The destination corresponds to the directory before the "/./", and gets its time.
		top, ok, err := c.b.Lookup(dest)
		if err != nil {
			return 0, err
		}
		if ok && top.Type == layer.Dir {
			top.ModTime, top.Clock = pivot.ModTime, pivot.Clock
			if err := c.b.Put(top, nil); err != nil {
				return 0, err
			}
		}
	}
	return len(selected), c.put(tree, selected, func(p string) string { return join(dest, strings.TrimPrefix(p[len(base):], "/")) })
}

// walkParents appends the entries of dir that a selection selects to out, each preceded by its parents up to base.
func (c *copying) walkParents(tree layer.Tree, base, dir string, s selection, info ignore.Info, out *[]*layer.Entry) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	list, err := tree.List(dir)
	if err != nil {
		return err
	}
	for i := range list {
		e := &list[i]
		taken, rest := s.step(e.Name())
		if !taken && len(rest.at) == 0 {
			continue
		}
		rel := strings.TrimPrefix(e.Path[len(base):], "/")
		excluded, below := c.exclude.Ignored(rel, info)
		if taken && !excluded {
			*out = append(*out, e)
		}
		if e.Type != layer.Dir || excluded && !c.exclude.MayReinclude(rel) {
			continue
		}
		n := len(*out)
		if taken {
			rest = selectionOf(nil)
		}
		if !taken || excluded {
			*out = append(*out, e) // removed below if nothing in it is selected
		}
		parent := len(*out)
		if err := c.walkParents(tree, base, e.Path, rest, below, out); err != nil {
			return err
		}
		if len(*out) == parent {
			*out = (*out)[:n]
		}
	}
	return nil
}

// selection is the state of matching a path against a source: the positions in its components from which matching can continue.
// There are never more positions than components, regardless of the number of "**".
type selection struct {
	parts []string
	at    []int // positions, ascending; len(parts) selects everything
}

// selectionOf returns the initial selection for components. An empty list selects everything.
func selectionOf(parts []string) selection { return selection{parts, []int{0}} }

// step matches the next name of a path. It reports whether the name is selected as a whole, and otherwise the selection for its
// contents. "**" matches any number of names, including none.
func (s selection) step(name string) (taken bool, rest selection) {
	rest.parts = s.parts
	add := func(place int) {
		if n := len(rest.at); n == 0 || rest.at[n-1] < place {
			rest.at = append(rest.at, place)
		}
	}
	looked := -1 // last position handled
	for _, place := range s.at {
		for ; place > looked; place++ {
			looked = place
			if place == len(s.parts) {
				return true, rest
			}
			if s.parts[place] == "**" {
				if place == len(s.parts)-1 {
					return true, rest
				}
				add(place)
				continue // it may match no name
			}
			if matches(s.parts[place], name) {
				if place == len(s.parts)-1 {
					return true, rest
				}
				add(place + 1)
			}
			break
		}
	}
	return false, rest
}

// matches reports whether a component matches a name.
func matches(part, name string) bool {
	ok, err := path.Match(part, name)
	return err == nil && ok || !wild(part) && part == name
}
