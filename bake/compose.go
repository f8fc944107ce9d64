package bake

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/bake/internal/values"
	"github.com/kilnbuild/kiln/compose"
)

// composeTargets returns the targets of the services that build something, sorted.
func composeTargets(o *Options, names []string, files []*file) ([]*Target, error) {
	stdin := []byte(nil)
	for _, f := range files {
		if f.name == "-" {
			stdin = f.data
		}
	}
	lookup, _, err := compose.Environment(o.Dir, nil)
	if err != nil {
		return nil, err
	}
	env := func(name string) (string, bool) {
		if value, ok := o.Vars[name]; ok {
			return value, true
		}
		return lookup(name)
	}
	p, err := compose.Load(compose.Options{Files: names, Stdin: bytes.NewReader(stdin), Dir: o.Dir, Env: env})
	if err != nil {
		return nil, err
	}
	var all []*Target
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		if p.Services[name].Build == nil {
			continue
		}
		t, err := composeTarget(p, p.Services[name], env)
		if err != nil {
			return nil, fmt.Errorf("%s: service %s: %w", strings.Join(names, ", "), name, err)
		}
		all = append(all, t)
	}
	return all, nil
}

// serviceTarget returns the name of the target of a service: names of targets have no dots.
func serviceTarget(service string) string { return strings.ReplaceAll(service, ".", "_") }

// composeTarget returns the target of a service.
func composeTarget(p *compose.Project, s *compose.Service, env compose.Lookup) (*Target, error) {
	b := s.Build
	t := &Target{
		Name: serviceTarget(s.Name), Platforms: b.Platforms, NoCacheFilter: b.NoCacheFilter, Ulimits: b.Ulimits,
		Context: new(home(b.Context, env)), Tags: b.Tags, DockerfileInline: b.Inline, Entitlements: b.Entitlements,
	}
	if values.Sanitized(t.Name) != t.Name {
		return nil, fmt.Errorf("the name of the target has letters, digits, _ and - only")
	}
	if len(b.Tags) == 0 && s.Image != "" {
		t.Tags = []string{s.Image}
	}
	for text, field := range map[*string]**string{
		&b.Dockerfile: &t.Dockerfile, &b.Target: &t.Stage, &b.Network: &t.Network, &b.ShmSize: &t.ShmSize,
	} {
		if *text != "" {
			*field = text
		}
	}
	if n, err := units.RAMInBytes(b.ShmSize); err == nil {
		if text := units.BytesSize(float64(n)); t.ShmSize != nil && sameSize(text, n) {
			t.ShmSize = &text
		}
	}
	if b.NoCache {
		t.NoCache = &b.NoCache
	}
	if b.Pull {
		t.Pull = &b.Pull
	}
	if b.Privileged {
		return nil, fmt.Errorf("build.privileged is not supported: RUN --security=insecure gives privileges to a single step")
	}
	if b.Isolation != "" && b.Isolation != "default" {
		return nil, fmt.Errorf("build.isolation %q is not supported", b.Isolation)
	}
	for name, value := range b.Args {
		if value == nil {
			if text, ok := env(name); ok {
				value = &text
			}
		}
		setKey(&t.Args, name, value)
	}
	for name, value := range b.Labels {
		setKey(&t.Labels, name, &value)
	}
	for name, value := range b.Hosts {
		setKey(&t.ExtraHosts, name, &value)
	}
	for name, value := range b.Contexts {
		if other, ok := strings.CutPrefix(value, compose.ServiceContext); ok {
			value = TargetContext + serviceTarget(other)
		} else if !IsRemote(value) {
			value = filepath.Clean(home(value, env))
		}
		setKey(&t.Contexts, name, &value)
	}
	if err := composeEntries(t, p, b, env); err != nil {
		return nil, err
	}
	return t, t.extend(b.Bake)
}

// sameSize reports whether the text of a size is exact.
func sameSize(text string, n int64) bool {
	again, err := units.RAMInBytes(text)
	return err == nil && again == n
}

func setKey(m *map[string]*string, key string, value *string) {
	if *m == nil {
		*m = map[string]*string{}
	}
	(*m)[key] = value
}

// home returns a path without "~/".
func home(path string, env compose.Lookup) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if dir, ok := env("HOME"); ok {
			return filepath.Join(dir, rest)
		}
	}
	return path
}

// composeEntries sets caches, secrets, agents and attestations.
func composeEntries(t *Target, p *compose.Project, b *compose.Build, env compose.Lookup) error {
	for key, list := range map[string][]string{"cache-from": b.CacheFrom, "cache-to": b.CacheTo} {
		if err := t.addItems(key, list); err != nil {
			return err
		}
	}
	for _, use := range b.Secrets {
		s, ok := p.Secrets[use.Source]
		e := Entry{"id": use.Source} // buildx knows no target of a secret
		switch {
		case !ok:
			return fmt.Errorf("build.secrets: the project has no secret %s", use.Source)
		case s.File != "":
			e["src"] = filepath.Clean(home(s.File, env))
		case s.Env != "":
			e["env"] = s.Env
		default:
			return fmt.Errorf("build.secrets: the secret %s has neither a file nor an environment variable", use.Source)
		}
		t.Secrets = append(t.Secrets, e)
	}
	for _, agent := range b.SSH {
		id, path, ok := strings.Cut(agent, "=")
		e := Entry{"id": id}
		if ok {
			e["paths"] = filepath.Clean(home(path, env))
		}
		t.SSH = append(t.SSH, e)
	}
	f := Flags{}
	f.attest(t, "sbom", b.SBOM)
	f.attest(t, "provenance", b.Provenance)
	return nil
}

// addItems adds the items of a list attribute, as strings. Empty ones are none, as in definitions.
func (t *Target) addItems(name string, items []string) error {
	items = slices.DeleteFunc(slices.Clone(items), func(item string) bool { return item == "" })
	for _, a := range attributes() {
		if a.name != name {
			continue
		}
		switch f := a.field(t).(type) {
		case *[]string:
			*f = unique(slices.Concat(*f, items))
		case *[]Entry:
			for _, item := range items {
				entries, err := a.entries(item)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				*f = a.unique(slices.Concat(*f, entries))
			}
		}
	}
	return nil
}

// extend adds what the extension x-bake of a service's build says.
func (t *Target) extend(x map[string]any) error {
	for _, key := range slices.Sorted(maps.Keys(x)) {
		v := x[key]
		switch key {
		case "tags", "cache-from", "cache-to", "secret", "ssh", "platforms", "output", "no-cache-filter":
			list, ok := v.([]any)
			if !ok && v != nil {
				list = []any{v}
			}
			var items []string
			for _, item := range list {
				s, ok := item.(string)
				if !ok {
					return fmt.Errorf("x-bake.%s: it is not a string or a list of strings", key)
				}
				items = append(items, s)
			}
			if err := t.addItems(key, items); err != nil {
				return fmt.Errorf("x-bake.%w", err)
			}
		case "pull", "no-cache":
			b, err := truth(v)
			if err != nil {
				return fmt.Errorf("x-bake.%s: %w", key, err)
			}
			if key == "pull" {
				t.Pull = &b
			} else {
				t.NoCache = &b
			}
		case "contexts":
			m, ok := v.(map[string]any)
			if !ok {
				return fmt.Errorf("x-bake.contexts: it is not a mapping")
			}
			for name, value := range m {
				setKey(&t.Contexts, name, new(fmt.Sprint(value)))
			}
		default:
			return fmt.Errorf("x-bake.%s is not supported: set it in docker-bake.hcl, which is read on top of the compose file", key)
		}
	}
	return nil
}

func truth(v any) (bool, error) {
	switch v := v.(type) {
	case bool:
		return v, nil
	case string:
		return compose.Truth(v)
	}
	return false, fmt.Errorf("it is neither true nor false")
}
