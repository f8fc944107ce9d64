package compose

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// object is a mapping of a file.
type object = map[string]any

// text returns a scalar as a string; "" for null.
func text(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

// isScalar reports whether v is neither a list nor a mapping.
func isScalar(v any) bool {
	switch v.(type) {
	case []any, object:
		return false
	}
	return true
}

// merged returns over on top of base: mappings are joined, lists are appended without repeats, and other values are replaced.
func merged(base, over any) any {
	switch o := over.(type) {
	case object:
		b, ok := base.(object)
		if !ok {
			return over
		}
		out := maps.Clone(b)
		for key, value := range o {
			if old, ok := out[key]; ok {
				value = merged(old, value)
			}
			out[key] = value
		}
		return out
	case []any:
		b, ok := base.([]any)
		if !ok {
			return over
		}
		out := slices.Clone(b)
		for _, v := range o {
			if !isScalar(v) || !slices.ContainsFunc(out, func(x any) bool { return isScalar(x) && x == v }) {
				out = append(out, v)
			}
		}
		return out
	case nil:
		if base != nil {
			return base
		}
	}
	return over
}

// hostSeparators separate a host from an address of it, of which it may have several.
const hostSeparators = "=:"

// pairs returns a list of "KEY=VALUE" or "KEY" as a mapping, in which a key alone has the value null; a mapping is returned as it is. sep are
// what may separate key and value.
func pairs(v any, sep string) (any, error) {
	list, ok := v.([]any)
	if !ok {
		if _, ok := v.(object); !ok && v != nil {
			return nil, fmt.Errorf("is neither a list nor a mapping")
		}
		return v, nil
	}
	out := object{}
	for _, item := range list {
		if !isScalar(item) {
			return nil, fmt.Errorf("has an item that is not a string")
		}
		s := text(item)
		if i := strings.IndexAny(s, sep); i >= 0 {
			key, value := s[:i], any(s[i+1:])
			if list, ok := out[key].([]any); ok && sep == hostSeparators {
				value = append(list, value)
			} else if sep == hostSeparators {
				value = []any{value}
			}
			out[key] = value
			continue
		}
		if sep == hostSeparators {
			return nil, fmt.Errorf("has the host %q without an address: write HOST=ADDRESS", s)
		}
		out[s] = nil
	}
	return out, nil
}

// canonical brings a service into the form in which it can be merged, and makes paths of it relative to the project: dir is the directory
// of its file.
func canonical(v any, dir string) (object, error) {
	if v == nil {
		return object{}, nil
	}
	s, ok := v.(object)
	if !ok {
		return nil, fmt.Errorf("is not a mapping")
	}
	s = maps.Clone(s)
	if list, ok := s["depends_on"].([]any); ok {
		on := object{}
		for _, name := range list {
			on[text(name)] = object{}
		}
		s["depends_on"] = on
	}
	build, ok := s["build"]
	if !ok {
		return s, nil
	}
	if build == nil {
		delete(s, "build")
		return s, nil
	}
	b, err := canonicalBuild(build, dir)
	if err != nil {
		return nil, fmt.Errorf("build%w", err)
	}
	s["build"] = b
	return s, nil
}

func canonicalBuild(v any, dir string) (object, error) {
	if isScalar(v) {
		return object{"context": within(dir, text(v))}, nil
	}
	b, ok := v.(object)
	if !ok {
		return nil, fmt.Errorf(" is neither a string nor a mapping")
	}
	b = maps.Clone(b)
	for key, sep := range map[string]string{"args": "=", "labels": "=", "additional_contexts": "=", "ssh": "=", "extra_hosts": hostSeparators} {
		if value, ok := b[key]; ok {
			m, err := pairs(value, sep)
			if err != nil {
				return nil, fmt.Errorf(".%s %w", key, err)
			}
			b[key] = m
		}
	}
	for _, key := range []string{"tags", "platforms", "cache_from", "cache_to", "entitlements"} {
		if value, ok := b[key]; ok && value != nil {
			if _, ok := value.([]any); !ok {
				return nil, fmt.Errorf(".%s is not a list", key)
			}
		}
	}
	if context, ok := b["context"]; ok {
		b["context"] = within(dir, text(context))
	} else if dir != "" {
		b["context"] = dir
	}
	if contexts, ok := b["additional_contexts"].(object); ok {
		for key, value := range contexts {
			contexts[key] = within(dir, text(value))
		}
	}
	return b, nil
}

// within returns a local path relative to the project, and everything else as it is.
func within(dir, path string) string {
	if dir == "" || Remote(path) || strings.HasPrefix(path, "/") || strings.HasPrefix(path, "~") {
		return path
	}
	return dir + "/" + path
}

// Remote reports whether a context is not a path: an address, or another service.
func Remote(context string) bool {
	for _, prefix := range []string{"git@", "github.com/", "service:", "target:"} {
		if strings.HasPrefix(context, prefix) {
			return true
		}
	}
	return strings.Contains(context, "://")
}
