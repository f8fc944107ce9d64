package bake

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/bake/internal/values"
	"github.com/kilnbuild/kiln/compose"
)

// Flags are the flags of the command line that all targets have.
type Flags struct {
	NoCache, Pull    bool
	Push, Load       bool
	Call             string // "" for what the targets say
	SBOM, Provenance string // "" for what the targets say
}

// override is one --set.
type override struct {
	text, key, name, value string
	hasValue, appends      bool
}

// overrides are those of one target, in the order of the command line.
type overrides []override

// parseSets returns the overrides by target. Each has to match one.
func (d *Definition) parseSets(sets []string) (map[string]overrides, error) {
	all := map[string]overrides{}
	for _, text := range sets {
		pattern, o, err := parseSet(text)
		if err != nil {
			return nil, err
		}
		found := false
		for _, name := range slices.Sorted(maps.Keys(d.targets)) {
			ok, err := path.Match(pattern, name)
			if err != nil {
				return nil, fmt.Errorf("--set %s: the pattern %q is invalid: %w", text, pattern, err)
			}
			if ok {
				all[name], found = append(all[name], o), true
			}
		}
		if !found {
			return nil, fmt.Errorf("--set %s: %w", text, d.unknown(pattern))
		}
	}
	return all, nil
}

func parseSet(text string) (string, override, error) {
	left, value, hasValue := strings.Cut(text, "=")
	o := override{text: text, value: value, hasValue: hasValue}
	left, o.appends = strings.CutSuffix(left, "+")
	pattern, key, ok := strings.Cut(left, ".")
	if !ok || pattern == "" {
		return "", o, fmt.Errorf("--set %s: it is not TARGET.KEY=VALUE", text)
	}
	o.key, o.name, _ = strings.Cut(key, ".")
	named := o.isMap()
	switch {
	case o.key != "push" && o.key != "load" && o.attribute() == nil:
		var keys []string
		for _, a := range attributes() {
			if a.set != "" {
				keys = append(keys, a.set)
			}
		}
		slices.Sort(keys)
		return "", o, fmt.Errorf("--set %s: the key %q cannot be set; those that can are %s, push and load",
			text, o.key, strings.Join(keys, ", "))
	case named && o.name == "":
		return "", o, fmt.Errorf("--set %s: %s needs a name: TARGET.%s.NAME=VALUE", text, o.key, o.key)
	case !named && o.name != "":
		return "", o, fmt.Errorf("--set %s: %s has no names: TARGET.%s=VALUE", text, o.key, o.key)
	case !hasValue && o.key != "args":
		return "", o, fmt.Errorf("--set %s: it has no value: TARGET.KEY=VALUE", text)
	}
	return pattern, o, nil
}

func (o *override) attribute() *attribute {
	for _, a := range attributes() {
		if a.set != "" && a.set == o.key {
			return &a
		}
	}
	return nil
}

// isMap reports whether the key is that of a mapping.
func (o *override) isMap() bool {
	a := o.attribute()
	if a == nil {
		return false
	}
	_, ok := a.field(&Target{}).(*map[string]*string)
	return ok
}

// apply sets what overrides say. Those of a list replace it, unless one of them appends.
func (all overrides) apply(t *Target, env compose.Lookup) error {
	lists := map[string]bool{} // those that have been begun anew
	for _, o := range all {
		if err := o.apply(t, env, all, lists); err != nil {
			return fmt.Errorf("--set %s: %w", o.text, err)
		}
	}
	return nil
}

func (o *override) apply(t *Target, env compose.Lookup, all overrides, begun map[string]bool) error {
	if o.key == "push" || o.key == "load" {
		return o.applyExport(t)
	}
	a := o.attribute()
	appends := a.name == "annotations" || a.name == "attest" || a.name == "entitlements" || begun[o.key] ||
		slices.ContainsFunc(all, func(other override) bool { return other.key == o.key && other.appends })
	begun[o.key] = true
	switch f := a.field(t).(type) {
	case **string:
		*f = &o.value
	case **bool:
		b, err := strconv.ParseBool(o.value)
		if err != nil {
			return fmt.Errorf("%s: %q is neither true nor false", o.key, o.value)
		}
		*f = &b
	case *map[string]*string:
		value := o.value
		if !o.hasValue {
			var ok bool
			if value, ok = env(o.name); !ok {
				return nil
			}
		}
		*f = maps.Clone(*f)
		if *f == nil {
			*f = map[string]*string{}
		}
		(*f)[o.name] = &value
	case *[]string:
		if !appends {
			*f = []string{}
		}
		if o.value != "" {
			*f = unique(append(slices.Clone(*f), o.value))
		}
	case *[]Entry:
		if !appends {
			*f = []Entry{}
		}
		if o.value == "" {
			return nil
		}
		entries, err := a.entries(o.value)
		if err != nil {
			return err
		}
		*f = a.unique(slices.Concat(*f, entries))
	}
	return nil
}

func (o *override) applyExport(t *Target) error {
	b, err := strconv.ParseBool(o.value)
	if err != nil {
		return fmt.Errorf("%s: %q is neither true nor false", o.key, o.value)
	}
	switch {
	case o.key == "load" && b:
		t.load()
	case o.key == "push":
		t.push(b)
	}
	return nil
}

// push makes the target's image outputs ones to the registry, or not. Outputs that are no images are left alone.
func (t *Target) push(on bool) {
	var outputs []Entry
	images, dockers := 0, 0
	for _, o := range t.Outputs {
		switch {
		case o["type"] == "image":
			o = maps.Clone(o)
			o["push"] = strconv.FormatBool(on)
			images++
		case o["type"] == "registry":
			if images++; !on {
				continue
			}
		case o["type"] == "docker":
			dockers++
		}
		outputs = append(outputs, o)
	}
	if on && images == 0 && dockers == len(t.Outputs) {
		outputs = append(outputs, Entry{"type": "image", "push": "true"})
	}
	t.Outputs = outputs
}

// load adds an output to the image store, unless there is one, or one that is no image.
func (t *Target) load() {
	for _, o := range t.Outputs {
		switch o["type"] {
		case "docker":
			if o["dest"] == "" {
				return
			}
		case "image", "registry", "oci":
		default:
			return
		}
	}
	t.Outputs = append(slices.Clone(t.Outputs), Entry{"type": "docker"})
}

// apply sets what the flags say.
func (f *Flags) apply(t *Target) {
	if f.NoCache {
		t.NoCache = new(true)
	}
	if f.Pull {
		t.Pull = new(true)
	}
	if f.Call != "" {
		t.Call = &f.Call
	}
	f.attest(t, "sbom", f.SBOM)
	f.attest(t, "provenance", f.Provenance)
	if f.Push {
		t.push(true)
	}
	if f.Load {
		t.load()
	}
}

// attest adds what a flag says of a kind of attestations: true, false, or values of it.
func (f *Flags) attest(t *Target, kind, value string) {
	if value == "" {
		return
	}
	e := Entry{"type": kind}
	if on, err := strconv.ParseBool(value); err == nil {
		if !on {
			e["disabled"] = "true"
		}
	} else if more, err := values.Fields(value); err == nil {
		maps.Copy(e, more)
	}
	for _, a := range attributes() {
		if a.name == "attest" {
			t.Attest = a.unique(append(slices.Clone(t.Attest), e))
		}
	}
}

// Check returns an error if a flag has a value that it cannot have.
func (f *Flags) Check() error {
	for name, value := range map[string]string{"sbom": f.SBOM, "provenance": f.Provenance} {
		if _, err := strconv.ParseBool(value); err == nil || value == "" {
			continue
		}
		if _, err := values.Fields(value); err != nil {
			return fmt.Errorf("--%s: %w", name, err)
		}
	}
	return nil
}
