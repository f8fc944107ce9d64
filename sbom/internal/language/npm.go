// Package language reads what the package managers of programming languages write: npm and yarn, pip, and those of Java.
package language

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/sbom/internal/found"
)

// npm returns a package of npm by its name, "@scope/name" or "name".
func npm(name, version string) found.Package {
	p := found.Package{Type: "npm", Name: name, Version: version}
	if scope, rest, ok := strings.Cut(name, "/"); ok && strings.HasPrefix(scope, "@") {
		p.Namespace, p.Name = scope, rest
	}
	return p
}

// PackageJSON reads a package.json. One without a name or a version is no package.
func PackageJSON(f *found.File) ([]found.Package, error) {
	data, err := found.Document(f)
	if err != nil {
		return nil, err
	}
	var j struct {
		Name     json.RawMessage `json:"name"`
		Version  json.RawMessage `json:"version"`
		License  json.RawMessage `json:"license"`
		Licenses json.RawMessage `json:"licenses"`
	}
	if err := json.Unmarshal(data, &j); err != nil {
		return nil, fmt.Errorf("it is no JSON: %w", err)
	}
	name, _ := value(j.Name).(string)
	version, _ := value(j.Version).(string)
	if name == "" || version == "" {
		return nil, nil
	}
	p := npm(name, version)
	if p.License = licenses(value(j.License)); p.License == "" {
		p.License = licenses(value(j.Licenses))
	}
	var all found.Packages
	err = all.Add(p)
	return all.All, err
}

// value returns what one value of a document says; nil for one that is larger than anybody means, and takes many times its size in memory.
func value(raw json.RawMessage) (v any) {
	if len(raw) > found.MaxField || json.Unmarshal(raw, &v) != nil {
		return nil
	}
	return v
}

// licenses returns what a package.json says of its license in any of the forms that have been in use: text, an object with a type, or a
// list of either.
func licenses(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case map[string]any:
		s, _ := v["type"].(string)
		return s
	case []any:
		var all []string
		for _, one := range v {
			if s := licenses(one); s != "" {
				all = append(all, s)
			}
		}
		return strings.Join(all, " AND ")
	}
	return ""
}

// locked is a package in a lock file of npm.
type locked struct {
	Name    string          `json:"name"`
	Version string          `json:"version"`
	License json.RawMessage `json:"license"`
	Dev     bool            `json:"dev"`
	Link    bool            `json:"link"`
	// Dependencies are packages below this one, before version 3 of the file.
	Dependencies map[string]locked `json:"dependencies"`
}

// PackageLock reads a package-lock.json. What only development needs is left out.
func PackageLock(f *found.File) ([]found.Package, error) {
	data, err := found.Document(f)
	if err != nil {
		return nil, err
	}
	var j struct {
		Packages     map[string]json.RawMessage `json:"packages"`
		Dependencies map[string]json.RawMessage `json:"dependencies"`
	}
	if err := json.Unmarshal(data, &j); err != nil {
		return nil, fmt.Errorf("it is no JSON: %w", err)
	}
	var all found.Packages
	if len(j.Packages) > 0 {
		for _, path := range slices.Sorted(maps.Keys(j.Packages)) {
			at := strings.LastIndex(path, "node_modules/")
			if at < 0 {
				continue // the project itself, or a directory of it
			}
			var p struct {
				locked
				Dependencies json.RawMessage `json:"dependencies"` // ranges, by name
			}
			if err := json.Unmarshal(j.Packages[path], &p); err != nil {
				return all.All, fmt.Errorf("a package is not described as npm does: %w", err)
			}
			if p.Dev || p.Link {
				continue
			}
			if p.Name == "" {
				p.Name = path[at+len("node_modules/"):]
			}
			n := npm(p.Name, p.Version)
			n.License = licenses(value(p.License))
			if err := all.Add(n); err != nil {
				return all.All, err
			}
		}
		return all.All, nil
	}
	for _, name := range slices.Sorted(maps.Keys(j.Dependencies)) {
		var p locked
		if err := json.Unmarshal(j.Dependencies[name], &p); err != nil {
			return all.All, fmt.Errorf("a package is not described as npm does: %w", err)
		}
		if err := dependency(&all, name, p); err != nil {
			return all.All, err
		}
	}
	return all.All, nil
}

func dependency(all *found.Packages, name string, p locked) error {
	if p.Dev {
		return nil
	}
	if err := all.Add(npm(name, p.Version)); err != nil {
		return err
	}
	for _, below := range slices.Sorted(maps.Keys(p.Dependencies)) {
		if err := dependency(all, below, p.Dependencies[below]); err != nil {
			return err
		}
	}
	return nil
}

// YarnLock reads a yarn.lock of any version: paragraphs that begin with the ranges which a package was chosen for.
func YarnLock(f *found.File) ([]found.Package, error) {
	var all found.Packages
	var name, version string
	end := func() error {
		defer func() { name, version = "", "" }()
		if name == "" || version == "" || version == "0.0.0-use.local" {
			return nil // as the project itself has it
		}
		return all.Add(npm(name, version))
	}
	for line, err := range found.Lines(f) {
		if err != nil {
			return all.All, err
		}
		switch {
		case line == "" || line[0] == '#':
		case line[0] != ' ':
			if err := end(); err != nil {
				return all.All, err
			}
			first, _, _ := strings.Cut(strings.TrimSuffix(line, ":"), ",")
			name = specName(strings.Trim(strings.TrimSpace(first), `"`))
			if name == "__metadata" {
				name = ""
			}
		case strings.HasPrefix(line, "  ") && !strings.HasPrefix(line, "   "):
			key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			value = strings.Trim(strings.TrimSpace(value), `"`)
			switch strings.TrimSuffix(key, ":") {
			case "version":
				version = value
			case "resolution":
				if _, rest, ok := strings.Cut(strings.TrimPrefix(value, "@"), "@"); ok && strings.HasPrefix(rest, "workspace:") {
					name = ""
				} else if name != "" {
					name = specName(value)
				}
			}
		}
	}
	return all.All, end()
}

// specName returns the name of "name@range", and of "alias@npm:name@range" that of what is installed.
func specName(spec string) string {
	at := strings.IndexByte(strings.TrimPrefix(spec, "@"), '@')
	if at < 0 {
		return spec
	}
	at += len(spec) - len(strings.TrimPrefix(spec, "@"))
	name, wanted := spec[:at], spec[at+1:]
	if real, ok := strings.CutPrefix(wanted, "npm:"); ok && strings.Contains(strings.TrimPrefix(real, "@"), "@") {
		return specName(real)
	}
	return name
}
