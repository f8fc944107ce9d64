package values

import (
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/build/caching"
	csvvalue "github.com/tonistiigi/go-csvvalue"
)

// Caches reads --cache-from or --cache-to: "type=registry,ref=…", "type=local,src=…", "type=s3,bucket=…", or the name of an image. No error
// has the secrets that a value holds.
func Caches(values []string, export bool) ([]caching.Spec, error) {
	flag := "--cache-from"
	if export {
		flag = "--cache-to"
	}
	var specs []caching.Spec
	for _, v := range values {
		if strings.TrimSpace(v) == "" {
			continue // as with docker, and as an unset variable of a script gives it
		}
		s, err := cacheSpec(v, export)
		if err == nil {
			err = s.Check()
		}
		if err != nil {
			return nil, usagef("%s %q: %w", flag, s.Text, err)
		}
		specs = append(specs, s)
	}
	return specs, nil
}

func cacheSpec(v string, export bool) (caching.Spec, error) {
	s := caching.Spec{Attrs: map[string]string{}, Export: export}
	fields, err := csvvalue.Fields(v, nil)
	if err != nil {
		return s, fmt.Errorf("it is not a comma separated list: %w", err)
	}
	if len(fields) == 1 && !strings.Contains(v, "=") {
		s.Type, s.Attrs["ref"], s.Text = "registry", v, v
		return s, nil
	}
	for i, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		if ok {
			fields[i] = key + "=" + caching.Shown(key, value)
		}
		if s.Text = strings.Join(fields[:i+1], ","); !ok {
			return s, fmt.Errorf("%q is not key=value", field)
		}
		switch key {
		case "type":
			s.Type = value
		case "mounts":
			if s.Mounts, err = caching.AppendMounts(s.Mounts, value); err != nil {
				return s, err
			}
		default:
			s.Attrs[key] = value
		}
	}
	if s.Type == "" {
		return s, fmt.Errorf("it has no type=, such as type=registry")
	}
	return s, nil
}
