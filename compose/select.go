package compose

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Find returns the directory of the project that dir belongs to, which is dir or the closest one above it with one of DefaultFiles, and the
// files to read there.
func Find(dir string) (string, []string, error) {
	for d := dir; ; d = filepath.Dir(d) {
		if first := existing(d, DefaultFiles); first != "" {
			files := []string{first}
			if over := existing(d, DefaultOverrides); over != "" {
				files = append(files, over)
			}
			return d, files, nil
		}
		if d == filepath.Dir(d) {
			return "", nil, fmt.Errorf("there is no compose file in %s or above: name one with -f, or make %s", dir, DefaultFiles[0])
		}
	}
}

// existing returns the first of the files of a directory that exists, "" for none.
func existing(dir string, names []string) string {
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return name
		}
	}
	return ""
}

// Environment returns the variables of the process and, below them, those of env files; with none, those of .env in dir if it exists.
func Environment(dir string, files []string) (Lookup, map[string]string, error) {
	return environment(dir, files, os.LookupEnv)
}

// environment is Environment with other variables than those of the process.
func environment(dir string, files []string, above Lookup) (Lookup, map[string]string, error) {
	optional := len(files) == 0
	if optional {
		files = []string{filepath.Join(dir, ".env")}
	}
	all := map[string]string{}
	for _, file := range files {
		if file == os.DevNull {
			continue
		}
		info, err := os.Stat(file)
		if optional && (errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir()) {
			continue
		}
		if err == nil && info.Size() > maxFile {
			err = fmt.Errorf("%s is larger than the %d MiB that are allowed", file, maxFile>>20)
		}
		var data []byte
		if err == nil {
			data, err = os.ReadFile(file)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read the environment: %w", err)
		}
		env, err := parseEnv(file, string(data), above)
		if err != nil {
			return nil, nil, err
		}
		maps.Copy(all, env)
	}
	return func(name string) (string, bool) {
		if value, ok := above(name); ok {
			return value, true
		}
		value, ok := all[name]
		return value, ok
	}, all, nil
}

// CheckName returns an error unless a project can have the name.
func CheckName(name string) error {
	if ok, _ := regexp.MatchString(`^[a-z0-9][a-z0-9_-]*$`, name); !ok {
		return fmt.Errorf("%q is not the name of a project: it has lower case letters, digits, _ and -, and begins with a letter or a digit", name)
	}
	return nil
}

// NameOf returns the name of a project that says none: that of its directory, without what names do not have.
func NameOf(dir string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' || r == '-' {
			return r
		}
		return -1
	}, strings.ToLower(filepath.Base(dir)))
	return strings.TrimLeft(name, "_-")
}

// Select returns the services that are to be built, sorted: those of these names, or with none those without a profile and those of the
// profiles. What they have as contexts is built as well, and with dependencies also what they depend on.
func (p *Project) Select(names, profiles []string, dependencies bool) ([]string, error) {
	if len(names) == 0 {
		for name, s := range p.Services {
			active := func(profile string) bool { return slices.Contains(profiles, profile) || slices.Contains(profiles, "*") }
			if len(s.Profiles) == 0 || slices.ContainsFunc(s.Profiles, active) {
				names = append(names, name)
			}
		}
	}
	var out []string
	for queue := slices.Clone(names); len(queue) > 0; {
		name := queue[0]
		queue = queue[1:]
		if slices.Contains(out, name) {
			continue
		}
		s := p.Services[name]
		if s == nil {
			if len(p.Services) == 0 {
				return nil, fmt.Errorf("there is no service %s; the files have none", name)
			}
			return nil, fmt.Errorf("there is no service %s; there are %s", name, strings.Join(slices.Sorted(maps.Keys(p.Services)), ", "))
		}
		out = append(out, name)
		if dependencies {
			queue = append(queue, s.DependsOn...)
		}
		if s.Build == nil {
			continue
		}
		for _, value := range s.Build.Contexts {
			if other, ok := strings.CutPrefix(value, ServiceContext); ok {
				queue = append(queue, other)
			}
		}
	}
	out = slices.DeleteFunc(out, func(name string) bool { return p.Services[name].Build == nil })
	slices.Sort(out)
	return out, p.checkLoops(out)
}

// ServiceContext is the prefix of an additional context that is the image of another service.
const ServiceContext = "service:"

// checkLoops returns an error if services have each other as contexts.
func (p *Project) checkLoops(names []string) error {
	done := map[string]bool{}
	var visit func(name string, path []string) error
	visit = func(name string, path []string) error {
		if slices.Contains(path, name) {
			return fmt.Errorf("services have each other as contexts, in a cycle: %s", strings.Join(append(path, name), ", "))
		}
		s := p.Services[name]
		if done[name] || s == nil || s.Build == nil {
			return nil
		}
		for _, value := range s.Build.Contexts {
			if other, ok := strings.CutPrefix(value, ServiceContext); ok {
				if p.Services[other] == nil || p.Services[other].Build == nil {
					return fmt.Errorf("service %s: its context %s is not built", name, value)
				}
				if err := visit(other, append(path, name)); err != nil {
					return err
				}
			}
		}
		done[name] = true
		return nil
	}
	for _, name := range names {
		if err := visit(name, nil); err != nil {
			return err
		}
	}
	return nil
}
