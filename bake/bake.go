// Package bake reads bake definitions: docker-bake.hcl, docker-bake.json and compose files, as docker buildx bake does. It knows the
// targets that they describe, and nothing of how a target is built.
//
// https://docs.docker.com/build/bake/reference/ describes the files. Those of HCL and JSON become the syntax tree of HCL; its expressions
// are evaluated by github.com/hashicorp/hcl within limits, since a file of a few lines can ask for any amount of memory.
package bake

import (
	"context"
	"fmt"
	"io"
	"maps"
	"regexp/syntax"
	"slices"

	"github.com/kilnbuild/kiln/compose"
)

// Limits of definitions.
const (
	maxFile    = 1 << 20 // bytes of a file
	maxFiles   = 100
	maxTargets = 10000
	maxDepth   = 100 // of variables, functions and attributes that refer to each other, of inherits, and of groups
)

// Error is what is wrong at a place of a file.
type Error = syntax.Error

// Options say what to read.
type Options struct {
	// Files are read one on top of the other; "-" is Stdin. Without any, those are read that Find returns.
	Files []string
	Stdin io.Reader
	// Dir is the working directory: compose files and .env are relative to it, and the paths of targets stay as they are written.
	Dir string
	// Vars are the variables of --var, which come before those of the environment.
	Vars map[string]string
	// Env is the environment.
	Env compose.Lookup
	// Platform is the value of BAKE_LOCAL_PLATFORM.
	Platform string
}

// Group is a name for several targets and groups.
type Group struct {
	Name        string   `json:"-"`
	Description string   `json:"description,omitempty"`
	Targets     []string `json:"targets"`
}

// Definition is what the files say.
type Definition struct {
	// Variables are in the order of the files.
	Variables []Variable
	groups    map[string]*Group
	targets   map[string]*Target
	joined    tally // of blocks of the same target
	env       compose.Lookup
}

// Load reads the files. Errors name the file, the line and what is wrong there.
func Load(ctx context.Context, o Options) (*Definition, error) {
	d := &Definition{groups: map[string]*Group{}, targets: map[string]*Target{}, env: o.Env}
	files, err := readAll(&o)
	if err != nil {
		return nil, err
	}
	if err := d.addCompose(&o, files); err != nil {
		return nil, err
	}
	e := newEvaluator(ctx, &o)
	for _, f := range files {
		if f.format != formatCompose {
			if err := e.add(f); err != nil {
				return nil, err
			}
		}
	}
	if err := e.evaluate(d); err != nil {
		return nil, err
	}
	if len(d.targets) > maxTargets {
		return nil, fmt.Errorf("there are more than %d targets", maxTargets)
	}
	return d, nil
}

// addTarget adds what a block says on top of what the blocks before it say of the same target.
func (d *Definition) addTarget(t *Target) error {
	if old := d.targets[t.Name]; old != nil {
		return d.joined.merge(t.Name, old, t)
	}
	d.targets[t.Name] = t
	return nil
}

// addCompose adds the targets of the compose files, which are read as one project, below those of all other files.
func (d *Definition) addCompose(o *Options, files []*file) error {
	var names []string
	for _, f := range files {
		if f.format == formatCompose {
			names = append(names, f.name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	targets, err := composeTargets(o, names, files)
	if err != nil {
		return err
	}
	group := &Group{Name: defaultName}
	for _, t := range targets {
		if err := d.addTarget(t); err != nil {
			return err
		}
		group.Targets = append(group.Targets, t.Name)
	}
	d.groups[defaultName] = group
	return nil
}

// names returns the names of all targets and groups, sorted.
func (d *Definition) names() []string {
	all := slices.Collect(maps.Keys(d.targets))
	for name := range d.groups {
		if d.targets[name] == nil {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// defaultName is what is built where nothing is named.
const defaultName = "default"
