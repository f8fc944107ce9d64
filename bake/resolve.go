package bake

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// Request says what of a definition is to be built.
type Request struct {
	// Names are targets, groups, and patterns (path.Match) of both; "default" without any.
	Names []string
	// Sets are the overrides of --set, as PATTERN.KEY=VALUE or PATTERN.KEY+=VALUE.
	Sets []string
	// Flags are the overrides of all targets.
	Flags Flags
}

// Plan is what is built.
type Plan struct {
	// Groups are those that were named or lead to targets, and "default" with what was named.
	Groups map[string]*Group `json:"group,omitempty"`
	// Targets are complete: with what they inherit and the overrides.
	Targets map[string]*Target `json:"target"`
}

// resolver makes a plan.
type resolver struct {
	*Definition
	overrides map[string]overrides // by target
	plan      *Plan
	resolved  map[string]*Target
	joined    tally
	open      []string
}

// Plan returns what is to be built.
func (d *Definition) Plan(q Request) (*Plan, error) {
	r := &resolver{Definition: d, plan: &Plan{Groups: map[string]*Group{}, Targets: map[string]*Target{}}, resolved: map[string]*Target{}}
	var err error
	if r.overrides, err = d.parseSets(q.Sets); err != nil {
		return nil, err
	}
	names, err := d.matching(q.Names)
	if err != nil {
		return nil, err
	}
	main := &Group{Name: defaultName}
	for _, name := range names {
		targets, err := r.group(name)
		if err != nil {
			return nil, err
		}
		for _, target := range targets {
			if _, err := r.add(target, false); err != nil {
				return nil, err
			}
		}
		if name != defaultName || r.groups[defaultName] == nil {
			main.Targets = append(main.Targets, name)
		}
	}
	if group := r.plan.Groups[defaultName]; group != nil {
		main.Description = group.Description
		main.Targets = append(main.Targets, group.Targets...)
	}
	slices.Sort(main.Targets)
	main.Targets = slices.Compact(main.Targets)
	r.plan.Groups[defaultName] = main
	if err := r.link(); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(r.plan.Targets)) {
		t := r.plan.Targets[name]
		q.Flags.apply(t)
		if t.Linked {
			t.Outputs = []Entry{{"type": "cacheonly"}}
		}
		if err := t.complete(d); err != nil {
			return nil, fmt.Errorf("target %s: %w", name, err)
		}
	}
	return r.plan, nil
}

// matching returns the names that were given, with those that patterns stand for.
func (d *Definition) matching(names []string) ([]string, error) {
	if len(names) == 0 {
		return []string{defaultName}, nil
	}
	var all []string
	for _, name := range names {
		if !strings.ContainsAny(name, "*?[") {
			all = append(all, strings.ReplaceAll(name, ".", "_"))
			continue
		}
		found := false
		for _, known := range d.names() {
			ok, err := path.Match(name, known)
			if err != nil {
				return nil, fmt.Errorf("the pattern %q is invalid: %w", name, err)
			}
			if ok {
				all, found = append(all, known), true
			}
		}
		if !found {
			return nil, fmt.Errorf("no target matches %q%s", name, d.known())
		}
	}
	return all, nil
}

// known lists the names of the definition for a message.
func (d *Definition) known() string {
	names := slices.DeleteFunc(d.names(), func(name string) bool { return strings.HasPrefix(name, "_") })
	const most = 20
	switch {
	case len(names) == 0:
		return ": the definition has no targets"
	case len(names) > most:
		return fmt.Sprintf("; there are %s and %d others", strings.Join(names[:most], ", "), len(names)-most)
	}
	return "; there are " + strings.Join(names, ", ")
}

// unknown is the error of a name that there is not.
func (d *Definition) unknown(name string) error {
	if hint := similar(name, d.names()); hint != "" {
		return fmt.Errorf("there is no target %s%s", name, hint)
	}
	return fmt.Errorf("there is no target %s%s", name, d.known())
}

// group returns the targets of a name, which comes before a target if it is that of a group. The name of a group that is being read is
// that of a target.
func (r *resolver) group(name string) ([]string, error) {
	g := r.groups[name]
	if g == nil || slices.Contains(r.open, name) {
		if r.targets[name] != nil {
			return []string{name}, nil
		}
		if g != nil {
			return nil, fmt.Errorf("the group %s has itself as a target, in a cycle: %s", name, strings.Join(append(r.open, name), ", "))
		}
		return nil, r.unknown(name)
	}
	if len(r.open) >= maxDepth {
		return nil, fmt.Errorf("groups have each other as targets more deeply than %d", maxDepth)
	}
	if r.plan.Groups[name] != nil {
		return nil, nil // its targets are in the plan
	}
	r.open = append(r.open, name)
	defer func() { r.open = r.open[:len(r.open)-1] }()
	r.plan.Groups[name] = &Group{Name: name, Description: g.Description, Targets: unique(g.Targets)}
	if g.Targets == nil {
		r.plan.Groups[name].Targets = nil
	}
	var all []string
	for _, member := range g.Targets {
		targets, err := r.group(member)
		if err != nil {
			return nil, fmt.Errorf("group %s: %w", name, err)
		}
		all = append(all, targets...)
	}
	return all, nil
}

// add adds a target to the plan.
func (r *resolver) add(name string, linked bool) (*Target, error) {
	if t := r.plan.Targets[name]; t != nil {
		return t, nil
	}
	t, err := r.resolve(name, nil)
	if err != nil {
		return nil, err
	}
	own := *t
	own.Name, own.Linked, own.Inherits = name, linked, nil
	r.plan.Targets[name] = &own
	return &own, nil
}

// resolve returns a target on top of those that it inherits from. path are the targets that inherit from it.
func (r *resolver) resolve(name string, inheriting []string) (*Target, error) {
	if t := r.resolved[name]; t != nil {
		return t, nil
	}
	if slices.Contains(inheriting, name) {
		return nil, fmt.Errorf("the target %s inherits from itself, in a cycle: %s", name, strings.Join(append(inheriting, name), ", "))
	}
	if len(inheriting) >= maxDepth {
		return nil, fmt.Errorf("targets inherit from each other more deeply than %d", maxDepth)
	}
	own := r.targets[name]
	if own == nil {
		return nil, r.unknown(name)
	}
	t := &Target{}
	for _, parent := range own.Inherits {
		from, err := r.resolve(parent, append(inheriting, name))
		if err != nil {
			if len(inheriting) == 0 {
				err = fmt.Errorf("target %s: inherits: %w", name, err)
			}
			return nil, err
		}
		if err := r.joined.merge(name, t, from); err != nil {
			return nil, err
		}
	}
	if err := r.joined.merge(name, t, own); err != nil {
		return nil, err
	}
	if err := r.overrides[name].apply(t, r.env); err != nil {
		return nil, err
	}
	if t.Network != nil && *t.Network == "host" {
		t.Entitlements = unique(append(slices.Clone(t.Entitlements), "network.host"))
	}
	r.resolved[name] = t
	return t, nil
}

// link adds the targets that others have as contexts, and returns an error if they have each other.
func (r *resolver) link() error {
	done := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(r.plan.Targets)) {
		if err := r.linked(name, nil, done); err != nil {
			return err
		}
	}
	return nil
}

func (r *resolver) linked(name string, path []string, done map[string]bool) error {
	if slices.Contains(path, name) {
		return fmt.Errorf("targets have each other as contexts, in a cycle: %s", strings.Join(append(path, name), ", "))
	}
	if len(path) >= maxDepth {
		return fmt.Errorf("targets have each other as contexts more deeply than %d", maxDepth)
	}
	if done[name] {
		return nil
	}
	t, err := r.add(name, true)
	if err != nil {
		return fmt.Errorf("target %s: contexts: %w", path[len(path)-1], err)
	}
	for _, key := range slices.Sorted(maps.Keys(t.Contexts)) {
		value := t.Contexts[key]
		if value == nil {
			continue
		}
		if other, ok := strings.CutPrefix(*value, TargetContext); ok {
			if err := r.linked(other, append(path, name), done); err != nil {
				return err
			}
		}
	}
	done[name] = true
	return nil
}

// complete sets what is not said, and checks what can be checked without building.
func (t *Target) complete(d *Definition) error {
	context := "."
	if t.Context != nil {
		context = cleaned(*t.Context)
	}
	t.Context = &context
	if t.Dockerfile == nil || *t.Dockerfile == "" {
		t.Dockerfile = new("Dockerfile")
	}
	if epoch, ok := d.env("SOURCE_DATE_EPOCH"); ok && epoch != "" && t.Args["SOURCE_DATE_EPOCH"] == nil {
		t.Args = maps.Clone(t.Args)
		if t.Args == nil {
			t.Args = map[string]*string{}
		}
		t.Args["SOURCE_DATE_EPOCH"] = &epoch
	}
	return errors.Join(t.checkValues(), t.checkFiles(d.env))
}

// cleaned returns a context that is a path without what it does not need.
func cleaned(context string) string {
	if context, ok := strings.CutPrefix(context, localPrefix); ok {
		return path.Clean(context)
	}
	if IsRemote(context) || context == "-" {
		return context
	}
	return path.Clean(context)
}

// IsRemote reports whether a context is not a path: an address, an image, or another target.
func IsRemote(context string) bool {
	for _, prefix := range []string{"git@", "github.com/", TargetContext} {
		if strings.HasPrefix(context, prefix) {
			return true
		}
	}
	return strings.Contains(context, "://")
}
