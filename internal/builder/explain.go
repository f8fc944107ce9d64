package builder

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
)

// maxExplained is how many changed files, or other changes, are named for one step.
const maxExplained = 10

// explain says in lines why a step ran: what is different from when it ran last. Keys are made of the very inputs that are
// compared here, so what is named is what made the difference. Values of variables and of buildArgs that have the name of a secret are
// not shown.
func explain(store *snapshot.Store, out solver.Outcome, buildArgs map[string]string) []string {
	if out.Last == nil {
		return []string{"ran because " + out.Miss.Reason}
	}
	var lines []string
	unnamed := 0 // changes of files that have no line
	hide := hider(buildArgs, out.Record.Inputs, out.Last.Inputs)
	now, before := byName(out.Record.Inputs), byName(out.Last.Inputs)
	for _, name := range names(out.Record.Inputs, out.Last.Inputs) {
		added, gone := without(now[name], before[name]), without(before[name], now[name])
		if len(added) == 0 && len(gone) == 0 {
			continue
		}
		switch name {
		case "root":
			lines = append(lines, "ran because what it stands on is not what it was")
		case "files":
			changed, more := files(store, out.Last.Layer, out.Record.Layer)
			lines, unnamed = append(lines, changed...), more
		default:
			lines = append(lines, changed(name, added, gone, hide)...)
		}
	}
	if len(lines) == 0 {
		return []string{"ran because " + out.Miss.Reason}
	}
	shown := min(len(lines), maxExplained)
	if more := len(lines) - shown + unnamed; more > 0 {
		lines = append(lines[:shown], fmt.Sprintf("and because of %d more changes", more))
	}
	return lines
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

// hider returns a function that replaces secrets in the value of an input: those in the env of inputs, and those of buildArgs.
func hider(buildArgs map[string]string, inputs ...[]solver.Input) func(name, value string) string {
	var secrets []string
	add := func(name, value string) {
		if len(value) >= minHidden && frontend.IsSecretName(name) {
			secrets = append(secrets, value)
		}
	}
	for name, value := range buildArgs {
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
		if name == "env" && frontend.IsSecretName(variable) {
			return variable + "=" + frontend.Hidden
		}
		for _, s := range secrets {
			value = strings.ReplaceAll(value, s, frontend.Hidden)
		}
		return value
	}
}

// changed describes how the values of one kind of input differ, as hide lets them be shown.
func changed(name string, added, gone []string, hide func(name, value string) string) []string {
	show := func(v string) string { return clip(hide(name, v)) }
	switch {
	case len(added) == 1 && len(gone) == 1 && show(added[0]) == show(gone[0]):
		return []string{fmt.Sprintf("ran because its %s has another value, which is not shown: %s", name, show(added[0]))}
	case len(added) == 1 && len(gone) == 1:
		return []string{fmt.Sprintf("ran because its %s is now %s, and was %s", name, show(added[0]), show(gone[0]))}
	}
	var lines []string
	for _, v := range added {
		lines = append(lines, fmt.Sprintf("ran because of a new %s: %s", name, show(v)))
	}
	for _, v := range gone {
		lines = append(lines, fmt.Sprintf("ran because of a %s that is gone: %s", name, show(v)))
	}
	if len(lines) == 0 {
		lines = []string{fmt.Sprintf("ran because the order of its %ss is another", name)}
	}
	return lines
}

func clip(s string) string {
	return strconv.Quote(termtext.Clip(s, 200))
}

// files names the files that differ between what a step made and what it made last, at most maxExplained, and counts the others.
func files(store *snapshot.Store, last, now solver.Layer) (lines []string, more int) {
	a, errA := store.Manifest(last.ID)
	b, errB := store.Manifest(now.ID)
	if errA != nil || errB != nil {
		return []string{"ran because its files changed"}, 0
	}
	changes(a, b, func(path, what string) {
		if len(lines) == maxExplained {
			more++
			return
		}
		lines = append(lines, fmt.Sprintf("ran because /%s %s", path, what))
	})
	return lines, more
}

// changes calls say for each entry of a that is not as it is in b, times aside.
func changes(a, b *layer.Manifest, say func(path, what string)) {
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
			say(x.Path, "is not there any more")
			i++
		case order > 0:
			say(y.Path, "is new")
			j++
		default:
			if what := difference(x, y); what != "" {
				say(x.Path, what)
			}
			i, j = i+1, j+1
		}
	}
}

// verified says in lines what a cached step made of another kind when it ran again; none if it made the same.
func verified(store *snapshot.Store, out solver.Outcome) []string {
	if out.Again.Err != nil {
		return []string{"failed when it ran again: " + out.Again.Err.Error()}
	}
	if out.Again.Layer.Content == out.Record.Layer.Content {
		return nil
	}
	a, errA := store.Manifest(out.Record.Layer.ID)
	b, errB := store.Manifest(out.Again.Layer.ID)
	if err := errors.Join(errA, errB); err != nil {
		return []string{"made something else when it ran again: " + err.Error()}
	}
	var lines []string
	more := 0
	changes(a, b, func(path, what string) {
		if len(lines) == maxExplained {
			more++
			return
		}
		lines = append(lines, fmt.Sprintf("/%s %s when it ran again", path, what))
	})
	if more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more differences", more))
	}
	return lines
}

// difference says how two entries of one path differ; "" if only their times do.
func difference(x, y layer.Entry) string {
	var what []string
	add := func(differs bool, name string) {
		if differs {
			what = append(what, name)
		}
	}
	add(x.Type != y.Type, "type")
	add(x.Digest != y.Digest, "content")
	add(x.Mode != y.Mode, "mode")
	add(x.UID != y.UID || x.GID != y.GID, "owner")
	add(x.Link != y.Link, "link")
	add(!slices.Equal(x.Xattrs, y.Xattrs), "extended attributes")
	if len(what) == 0 {
		return ""
	}
	return "has changed in " + strings.Join(what, ", ")
}
