package files

import (
	"context"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
)

// copying executes an llb.Copy.
type copying struct {
	maker
	op      *llb.Copy
	exclude *ignore.Matcher
	include *ignore.Matcher // nil: everything
	found   []bool          // of op.Required
	matches [][]selected    // of each source
	nothing []*NoMatchError // the sources that selected nothing
}

func (r *run) newCopy(op *llb.Copy) (*copying, error) {
	exclude, err := ignore.New(r.ctx, op.Exclude)
	if err != nil {
		return nil, fmt.Errorf("read --exclude: %w", err)
	}
	c := &copying{op: op, exclude: exclude}
	if len(op.Include) > 0 {
		if c.include, err = ignore.New(r.ctx, op.Include); err != nil {
			return nil, fmt.Errorf("read the patterns of what is copied: %w", err)
		}
		c.found = make([]bool, len(op.Required))
	}
	c.maker, err = r.maker(op.Attributes)
	c.dated, c.replace = op.Dated && op.Epoch != nil, op.Replace
	return c, err
}

func (c *copying) dest() (string, error) { return c.maker.dest(c.op.Dest, !c.op.Link) }

// selected is a path selected by a source, and its entry.
type selected struct {
	name     string // as written in the source
	physical string
	entry    *layer.Entry // nil if the path does not exist
}

// find computes the paths that each source selects. Files whose digests are not known yet are read, several concurrently.
func (c *copying) find() error {
	all := make([][]selected, len(c.op.Sources))
	files := make([][]*layer.Entry, len(c.trees))
	for i, src := range c.op.Sources {
		if c.op.Parents {
			continue
		}
		tree := c.trees[src.Input]
		names, err := c.names(tree, src)
		if err != nil {
			return err
		}
		for _, name := range names {
			m := selected{name: name}
			if m.physical, m.entry, err = compose.Resolve(tree.Lookup, name, !c.op.NoFollow); err != nil {
				return err
			}
			all[i] = append(all[i], m)
			if m.entry != nil && m.entry.Type == layer.File {
				files[src.Input] = append(files[src.Input], m.entry)
			}
		}
	}
	for i, list := range files {
		if len(list) == 0 {
			continue
		}
		if err := c.trees[i].Sum(c.ctx, list); err != nil {
			return err
		}
	}
	for i, src := range c.op.Sources {
		var err error
		if all[i], err = c.present(c.trees[src.Input], src, all[i]); err != nil {
			return err
		}
	}
	c.matches = all
	return nil
}

// names returns the paths in a tree that a source selects.
func (c *copying) names(tree layer.Tree, src llb.CopySource) ([]string, error) {
	if c.op.NoWildcards {
		return []string{strings.Join(components(src.Path), "/")}, nil
	}
	return glob(tree, src.Path, !c.op.NoFollow)
}

// present returns the matches of a source without files that were removed. For a source without wildcards, a removed file stays
// as a match that does not exist.
func (c *copying) present(tree layer.Tree, src llb.CopySource, matches []selected) ([]selected, error) {
	var wildcards []string
	if !c.op.NoWildcards {
		_, wildcards = split(src.Path)
	}
	left := matches[:0]
	for _, m := range matches {
		if m.entry != nil && m.entry.Type == layer.Whiteout {
			if m.entry = nil; len(wildcards) > 0 {
				continue
			}
		}
		if m.entry == nil && len(wildcards) > 0 {
			// A link that leads to nothing is there; anything else was removed, even if it is there again by now.
			if e, ok, err := tree.Lookup(m.name); err != nil {
				return nil, err
			} else if !ok || e.Type != layer.Symlink {
				continue
			}
		}
		left = append(left, m)
	}
	return left, nil
}

func (c *copying) do() error {
	for i, src := range c.op.Sources {
		if err := c.source(src, c.matches[i]); err != nil {
			return err
		}
	}
	c.matches = nil
	// A source that may be missing is often written with a wildcard beside one that is there.
	if len(c.nothing) >= len(c.op.Sources) {
		c.result.Unmatched = append(c.result.Unmatched, c.nothing...)
	}
	return nil
}

func (c *copying) source(src llb.CopySource, matches []selected) error {
	tree := c.trees[src.Input]
	c.context, c.number = c.Inputs[src.Input].Local, src.Input
	if c.op.Parents {
		return c.parents(tree, src)
	}
	if c.op.NoParents {
		if err := c.parentExists(c.op.Dest); err != nil {
			return err
		}
	}
	if len(matches) == 0 {
		if c.op.MustMatch {
			return noMatch(tree, src.Path)
		}
		literal, _ := split(src.Path)
		return c.unmatched(tree, src, literal)
	}
	for _, m := range matches {
		c.links = map[string]string{}
		only := len(matches) == 1 && len(c.op.Sources) == 1 && len(c.actions) == 1 && !c.unpacks && !c.replace
		if err := c.match(tree, m, src, only); err != nil {
			return err
		}
	}
	return c.required(tree)
}

// required returns an error for a required path that was not copied.
func (c *copying) required(tree layer.Tree) error {
	for i, name := range c.op.Required {
		if c.include != nil && !c.found[i] {
			return NotFound(tree, name, strings.TrimPrefix(name, "/"))
		}
	}
	return nil
}

// match copies one path that a source selects. only reports that nothing else is copied.
func (c *copying) match(tree layer.Tree, m selected, src llb.CopySource, only bool) error {
	e := m.entry
	if e == nil {
		if src.AllowMissing {
			return nil
		}
		return NotFound(tree, m.name, m.physical)
	}
	if src.Unpack && e.Type == layer.File {
		ok, err := c.archive(tree, e)
		if ok || err != nil {
			return err
		}
	}
	dest, err := c.dest()
	if err != nil {
		return err
	}
	if e.Type == layer.Dir && c.op.AsDir {
		return c.asDir(tree, *e, dest, path.Base("/"+m.name), only)
	}
	if e.Type == layer.Dir {
		return c.dir(tree, *e, dest, only)
	}
	target, err := c.target(dest, path.Base("/"+m.name))
	if err != nil {
		return err
	}
	return c.leaf(tree, *e, target)
}

// dir copies the contents of a source directory into dest, which gets the time of the source and keeps its other attributes. If nothing
// else is copied, the entries are passed on in order, each path once, so that memory use does not depend on the number of files.
func (c *copying) dir(tree layer.Tree, src layer.Entry, dest string, only bool) error {
	return c.into(tree, src, dest, only, func() layer.Entry { return c.newDir(dest) })
}

// asDir copies a source directory, whose name is base, into dest, or as dest if nothing is there.
func (c *copying) asDir(tree layer.Tree, src layer.Entry, dest, base string, only bool) error {
	_, ok, err := c.b.Lookup(dest)
	if err != nil {
		return err
	}
	if ok {
		dest = join(dest, strings.TrimPrefix(base, "/"))
	}
	if err := c.b.Mkdirs(layer.Parent(dest), c.newDir); err != nil {
		return err
	}
	return c.into(tree, src, dest, only, func() layer.Entry {
		made := src
		made.Implied, made.Opaque, made.LinkID = false, false, ""
		c.apply(&made)
		return made
	})
}

// into copies the contents of a source directory into dest, which is made if it is missing.
func (c *copying) into(tree layer.Tree, src layer.Entry, dest string, only bool, made func() layer.Entry) error {
	if only {
		c.streaming = true
		c.b.Stream(c.add)
	}
	old, ok, err := c.b.Lookup(dest)
	if err == nil {
		ok, err = c.clear(dest, old, ok, layer.Dir)
	}
	if err != nil {
		return err
	}
	if ok && old.Type != layer.Dir {
		return &layer.PathError{Path: dest, Msg: "is not a directory, and a directory cannot be copied to it"}
	}
	top := old
	if !ok {
		top = made()
		top.Path = dest
	}
	if dest != "" {
		// The destination directory gets the time of the source, and if it was there, it keeps its other attributes.
		top.ModTime, top.Clock = src.ModTime, src.Clock
		c.date(&top)
		if err := c.b.Put(top, nil); err != nil {
			return err
		}
	}
	return c.below(tree, src.Path, func(e *layer.Entry) error {
		for i, name := range c.op.Required[:len(c.found)] {
			c.found[i] = c.found[i] || strings.HasPrefix("/"+e.Path, name)
		}
		return c.nested(tree, *e, join(dest, strings.TrimPrefix(e.Path[len(src.Path):], "/")))
	})
}

// put copies selected entries of one tree, parents first. to returns the destination for a source path.
func (c *copying) put(tree layer.Tree, selected []*layer.Entry, to func(string) string) error {
	for _, src := range selected {
		if c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		if err := c.nested(tree, *src, to(src.Path)); err != nil {
			return err
		}
	}
	return nil
}

// nested copies an entry in a source directory.
func (c *copying) nested(tree layer.Tree, src layer.Entry, target string) error {
	if src.Type != layer.Dir {
		return c.leaf(tree, src, target)
	}
	old, ok, err := c.b.Lookup(target)
	if err == nil {
		ok, err = c.clear(target, old, ok, layer.Dir)
	}
	if err != nil {
		return err
	}
	if ok && old.Type != layer.Dir {
		return &layer.PathError{Path: target, Msg: "is not a directory, and a directory cannot be copied to it"}
	}
	src.Path, src.Implied, src.Opaque, src.LinkID = target, false, false, ""
	c.apply(&src)
	return c.b.Put(src, nil)
}

func join(dir, name string) string {
	switch {
	case dir == "":
		return name
	case name == "":
		return dir
	}
	return dir + "/" + name
}

// lazyFile is a file of a tree that is opened on the first read.
type lazyFile struct {
	tree  layer.Tree
	entry layer.Entry
	file  io.ReadCloser
}

func (l *lazyFile) Read(p []byte) (int, error) {
	if l.file == nil {
		f, err := l.tree.Open(&l.entry)
		if err != nil {
			return 0, err
		}
		l.file = f
	}
	return l.file.Read(p)
}

func (l *lazyFile) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
