package compose

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Build is the attribute build of a service. Paths are relative to the project's directory.
type Build struct {
	// Context is "" where there is none, which is "." unless Inline is set.
	Context, Dockerfile, Target, Network, ShmSize string
	// Inline is the text of the Dockerfile; nil for one that is a file.
	Inline *string
	// Args are the build arguments. One that is null has the value of the variable of the environment.
	Args   map[string]*string
	Labels map[string]string
	// Contexts are the additional contexts, "service:NAME" for the image of another service.
	Contexts                            map[string]string
	Tags, Platforms, CacheFrom, CacheTo []string
	Entitlements                        []string
	NoCacheFilter                       []string
	NoCache, Pull, Privileged           bool
	Isolation, SBOM, Provenance         string
	// Ulimits are "NAME=SOFT:HARD", and SSH "ID" or "ID=PATH", both sorted.
	Ulimits, SSH []string
	// Hosts are addresses by host.
	Hosts map[string]string
	// Secrets are those of the project that the build has, by the ID that the Dockerfile uses.
	Secrets []SecretUse
	// Bake is the extension x-bake, as YAML has it.
	Bake map[string]any
}

// SecretUse is a secret of a build.
type SecretUse struct{ Source, ID string }

// project returns the project of merged files.
func project(m object) (*Project, error) {
	p := &Project{Name: text(m["name"]), Services: map[string]*Service{}, Secrets: map[string]Secret{}}
	secrets, _ := m["secrets"].(object)
	for name, v := range secrets {
		s, _ := v.(object)
		p.Secrets[name] = Secret{File: text(s["file"]), Env: text(s["environment"])}
	}
	services, _ := m["services"].(object)
	for _, name := range slices.Sorted(maps.Keys(services)) {
		m := services[name].(object)
		s, err := service(name, m)
		if err == nil && s.Build == nil && s.Image == "" && m["provider"] == nil {
			err = errors.New("it has neither an image nor a build section")
		}
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", name, err)
		}
		p.Services[name] = s
	}
	return p, nil
}

func service(name string, m object) (*Service, error) {
	s := &Service{Name: name, Image: text(m["image"]), Platform: text(m["platform"])}
	var err error
	if s.Profiles, err = stringList(m["profiles"]); err != nil {
		return nil, fmt.Errorf("profiles: %w", err)
	}
	if on, ok := m["depends_on"].(object); ok {
		s.DependsOn = slices.Sorted(maps.Keys(on))
	}
	if b, ok := m["build"].(object); ok {
		if s.Build, err = build(b); err != nil {
			return nil, fmt.Errorf("build.%w", err)
		}
	}
	return s, nil
}

// build reads the attributes of a build. Those that it does not know are errors.
func build(m object) (*Build, error) {
	b := &Build{}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if err := b.set(key, m[key]); err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
	}
	return b, nil
}

func (b *Build) set(key string, v any) (err error) {
	texts := map[string]*string{
		"context": &b.Context, "dockerfile": &b.Dockerfile, "target": &b.Target, "network": &b.Network, "shm_size": &b.ShmSize,
		"isolation": &b.Isolation, "sbom": &b.SBOM, "provenance": &b.Provenance,
	}
	lists := map[string]*[]string{
		"tags": &b.Tags, "platforms": &b.Platforms, "cache_from": &b.CacheFrom, "cache_to": &b.CacheTo, "entitlements": &b.Entitlements,
		"no_cache_filter": &b.NoCacheFilter,
	}
	truths := map[string]*bool{"no_cache": &b.NoCache, "pull": &b.Pull, "privileged": &b.Privileged}
	switch {
	case texts[key] != nil:
		if !isScalar(v) {
			return fmt.Errorf("it is not a string")
		}
		*texts[key] = text(v)
		return nil
	case lists[key] != nil:
		*lists[key], err = stringList(v)
		*lists[key] = slices.DeleteFunc(*lists[key], func(item string) bool { return item == "" }) // of a variable, perhaps
		return err
	case truths[key] != nil:
		if v != nil {
			*truths[key], err = Truth(text(v))
		}
		return err
	}
	switch key {
	case "dockerfile_inline":
		if s := text(v); s != "" {
			b.Inline = &s
		}
	case "args":
		b.Args = map[string]*string{}
		m, _ := v.(object)
		for name, value := range m {
			b.Args[name] = nil
			if value != nil {
				s := text(value)
				b.Args[name] = &s
			}
		}
	case "labels":
		b.Labels = texted(v)
	case "additional_contexts":
		b.Contexts = texted(v)
	case "extra_hosts":
		b.Hosts = map[string]string{}
		m, _ := v.(object)
		for host, value := range m {
			addresses, err := stringList(value)
			if err != nil {
				return err
			}
			b.Hosts[host] = strings.Join(addresses, ",")
		}
	case "ssh":
		for id, path := range texted(v) {
			if path != "" {
				id += "=" + path
			}
			b.SSH = append(b.SSH, id)
		}
		slices.Sort(b.SSH)
	case "ulimits":
		return b.ulimits(v)
	case "secrets":
		return b.secrets(v)
	case "x-bake":
		if v == nil {
			return nil
		}
		var ok bool
		if b.Bake, ok = v.(object); !ok {
			return fmt.Errorf("it is not a mapping")
		}
	default:
		if !strings.HasPrefix(key, "x-") {
			return fmt.Errorf("there is no such attribute")
		}
	}
	return nil
}

// Truth returns a truth value, as YAML 1.1 or strconv.ParseBool have them.
func Truth(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "yes", "y", "on":
		return true, nil
	case "no", "n", "off":
		return false, nil
	}
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, fmt.Errorf("%q is neither true nor false", s)
	}
	return b, nil
}

func (b *Build) ulimits(v any) error {
	m, ok := v.(object)
	if !ok && v != nil {
		return fmt.Errorf("it is not a mapping")
	}
	for name, value := range m {
		limit := text(value)
		if o, ok := value.(object); ok {
			limit = text(o["soft"]) + ":" + text(o["hard"])
		} else {
			limit += ":" + limit
		}
		b.Ulimits = append(b.Ulimits, name+"="+limit)
	}
	slices.Sort(b.Ulimits)
	return nil
}

func (b *Build) secrets(v any) error {
	list, ok := v.([]any)
	if !ok && v != nil {
		return fmt.Errorf("it is not a list")
	}
	for _, item := range list {
		use := SecretUse{Source: text(item), ID: text(item)}
		if o, ok := item.(object); ok {
			use = SecretUse{Source: text(o["source"]), ID: text(o["source"])}
			if target := text(o["target"]); target != "" {
				use.ID = target
			}
		}
		b.Secrets = append(b.Secrets, use)
	}
	return nil
}

// texted returns the values of a mapping as strings.
func texted(v any) map[string]string {
	out := map[string]string{}
	m, _ := v.(object)
	for key, value := range m {
		out[key] = text(value)
	}
	return out
}

// stringList returns a list, or a single string, as strings.
func stringList(v any) ([]string, error) {
	if v == nil {
		return nil, nil
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var out []string
	for _, item := range list {
		if !isScalar(item) {
			return nil, fmt.Errorf("it has an item that is not a string")
		}
		out = append(out, text(item))
	}
	return out, nil
}
