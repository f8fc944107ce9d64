// Package explain says why a step runs: which of its inputs are not what they were, and how its files differ.
package explain

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/solver"
)

// Layers gives the manifests of layers.
type Layers interface {
	Manifest(ctx context.Context, id layer.ID) (*layer.Manifest, error)
}

// Explainer is the solver's: it compares inputs and manifests. Keys are made of the very inputs that are compared here, so what is named is
// what made the difference.
type Explainer struct {
	Layers Layers
	// Tree returns the files of a layer; nil if they are not looked at.
	Tree func(context.Context, solver.Layer) (layer.Tree, error)
	// BuildArgs are those of the build. Values of variables for which IsSecret reports true are hidden; nil is for none.
	BuildArgs map[string]string
	IsSecret  func(variable string) bool
}

// hidden is shown in place of the value of a secret.
const hidden = "****"

// maxValue is how much of an input's value is shown, in bytes.
const maxValue = 200

// Inputs implements solver.Explainer.
func (x Explainer) Inputs(now, last []solver.Input) (changes []events.Change, more int) {
	nowBy, lastBy := byName(now), byName(last)
	var hide func(name, value string) string
	for _, name := range names(now, last) {
		if slices.Equal(nowBy[name], lastBy[name]) {
			continue
		}
		if len(changes) == events.MaxChanges {
			more++
			continue
		}
		c := events.Change{Input: name}
		if name != events.InputRoot && name != events.InputFiles {
			if hide == nil {
				hide = x.hider(now, last)
			}
			show := func(values []string) (out []string) {
				for _, v := range values[:min(len(values), events.MaxChanges)] {
					out = append(out, termtext.Clip(termtext.Redact(hide(name, v)), maxValue))
				}
				return out
			}
			c.Now, c.Was = show(without(nowBy[name], lastBy[name])), show(without(lastBy[name], nowBy[name]))
		}
		changes = append(changes, c)
	}
	return changes, more
}

// Files implements solver.Explainer.
func (x Explainer) Files(now, last solver.Layer) (f events.Files) {
	a, errA := x.Layers.Manifest(context.Background(), layer.ID(last.ID)) // it takes no time
	b, errB := x.Layers.Manifest(context.Background(), layer.ID(now.ID))
	if errA != nil || errB != nil {
		return f // they cannot be compared any more
	}
	changes(a, b, func(c events.FileChange) {
		if len(f.Changes) == events.MaxChanges {
			f.More++
			return
		}
		f.Changes = append(f.Changes, c)
	})
	return f
}

func byName(inputs []solver.Input) map[string][]string {
	m := map[string][]string{}
	for _, in := range inputs {
		m[in.Name] = append(m[in.Name], in.Value)
	}
	return m
}

// names returns the names of both lists, each once, in the order in which they come.
func names(lists ...[]solver.Input) []string {
	var out []string
	for _, list := range lists {
		for _, in := range list {
			if !slices.Contains(out, in.Name) {
				out = append(out, in.Name)
			}
		}
	}
	return out
}

func without(list, other []string) []string {
	in := map[string]bool{}
	for _, s := range other {
		in[s] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return in[s] })
}

// minHidden is the length in bytes from which a secret is hidden wherever it occurs. A shorter one is a part of too many other texts, and
// is only hidden as the value of its variable.
const minHidden = 4

// hider returns a function that replaces secrets in the value of an input: those in the env of inputs, and those of BuildArgs.
func (x Explainer) hider(inputs ...[]solver.Input) func(name, value string) string {
	var secrets []string
	add := func(name, value string) {
		if len(value) >= minHidden && x.secret(name) {
			secrets = append(secrets, value)
		}
	}
	for name, value := range x.BuildArgs {
		add(name, value)
	}
	for _, list := range inputs {
		for _, in := range list {
			if name, value, _ := strings.Cut(in.Value, "="); in.Name == "env" {
				add(name, value)
			}
		}
	}
	// A secret may be a part of another.
	slices.SortFunc(secrets, func(x, y string) int { return cmp.Or(len(y)-len(x), strings.Compare(x, y)) })
	return func(name, value string) string {
		variable, _, _ := strings.Cut(value, "=")
		if name == "env" && x.secret(variable) {
			return variable + "=" + hidden
		}
		for _, s := range secrets {
			value = strings.ReplaceAll(value, s, hidden)
		}
		return value
	}
}

// changes calls say for each entry of a that is not as it is in b, times aside.
func changes(a, b *layer.Manifest, say func(events.FileChange)) {
	i, j := 0, 0
	for i < a.Entries || j < b.Entries {
		var x, y layer.Entry
		order := 0
		switch {
		case i == a.Entries:
			y, order = b.At(j), 1
		case j == b.Entries:
			x, order = a.At(i), -1
		default:
			x, y = a.At(i), b.At(j)
			order = layer.Compare(x.Path, y.Path)
		}
		switch {
		case order < 0:
			say(events.FileChange{Path: x.Path, Kind: events.Removed})
			i++
		case order > 0:
			say(events.FileChange{Path: y.Path, Kind: events.Added})
			j++
		default:
			if what := difference(x, y); len(what) > 0 {
				say(events.FileChange{Path: x.Path, Kind: events.Changed, What: what})
			}
			i, j = i+1, j+1
		}
	}
}

// content names a difference in the bytes of a file.
const content = "content"

// difference says in what two entries of one path differ, times aside.
func difference(x, y layer.Entry) (what []string) {
	add := func(differs bool, name string) {
		if differs {
			what = append(what, name)
		}
	}
	add(x.Type != y.Type, "type")
	add(x.Digest != y.Digest, content)
	add(x.Mode != y.Mode, "mode")
	add(x.UID != y.UID || x.GID != y.GID, "owner")
	add(x.Link != y.Link, "link")
	add(!slices.Equal(x.Xattrs, y.Xattrs), "extended attributes")
	return what
}

func (x Explainer) secret(variable string) bool { return x.IsSecret != nil && x.IsSecret(variable) }
