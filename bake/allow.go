package bake

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// Allowed are the privileges that a command line grants: a definition may come from somebody else, and the files outside the working
// directory, the agent and the host's network are the user's.
type Allowed struct {
	// Entitlements are those of builds, such as network.host.
	Entitlements []string
	// Read and Write are directories, or "*" for all.
	Read, Write []string
	SSH         bool
	// Frontends are those that are images.
	Frontends bool
}

// ParseAllow reads the values of --allow.
func ParseAllow(list []string) (*Allowed, error) {
	a := &Allowed{}
	for _, v := range list {
		key, value, ok := strings.Cut(v, "=")
		switch {
		case v == "network.host", v == "security.insecure", v == "device", key == "device" && value != "":
			a.Entitlements = append(a.Entitlements, v)
		case v == "frontend":
			a.Frontends = true
		case v == "ssh":
			a.SSH = true
		case (key == "fs" || key == "fs.read" || key == "fs.write") && ok && value != "":
			if key != "fs.write" {
				a.Read = append(a.Read, value)
			}
			if key != "fs.read" {
				a.Write = append(a.Write, value)
			}
		default:
			return nil, fmt.Errorf("--allow %s: there are network.host, security.insecure, device, device=NAME, frontend, ssh, "+
				"fs=PATH, fs.read=PATH and fs.write=PATH", v)
		}
	}
	return a, nil
}

// Missing returns an error with the privileges that the targets of a plan need and that are not granted. dir is the working directory,
// whose files need none; files says whether those of other directories do.
func (a *Allowed) Missing(p *Plan, dir string, files bool) error {
	var missing []string
	need := func(flag string) {
		if !slices.Contains(missing, flag) {
			missing = append(missing, flag)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Targets)) {
		t := p.Targets[name]
		for _, e := range t.Entitlements {
			device := strings.HasPrefix(e, "device=") && slices.Contains(a.Entitlements, "device")
			if !device && !slices.Contains(a.Entitlements, e) {
				need(e)
			}
		}
		if !a.SSH && slices.ContainsFunc(t.SSH, func(e Entry) bool { return len(e.Paths()) == 0 }) {
			need("ssh")
		}
		if !files {
			continue
		}
		reads, writes := t.files()
		for _, path := range reads {
			if !within(path, a.Read, dir) {
				need("fs.read=" + path)
			}
		}
		for _, path := range writes {
			if !within(path, a.Write, dir) {
				need("fs.write=" + path)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	for i, flag := range missing {
		missing[i] = "--allow " + flag
	}
	return fmt.Errorf("the definition asks for privileges that the command line does not grant: if you trust it, add %s",
		strings.Join(missing, " "))
}

// files returns the paths that the build of a target reads, and those that it writes.
func (t *Target) files() (reads, writes []string) {
	if !IsRemote(*t.Context) {
		reads = append(reads, *t.Context)
	}
	if file, ok := strings.CutPrefix(*t.Dockerfile, localPrefix); t.DockerfileInline == nil && !IsRemote(file) {
		switch {
		case ok || filepath.IsAbs(file):
			reads = append(reads, file)
		case !IsRemote(*t.Context):
			reads = append(reads, filepath.Join(*t.Context, file))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(t.Contexts)) {
		switch value := t.Contexts[key]; {
		case value == nil:
		case strings.HasPrefix(*value, "oci-layout://"):
			layout, _, _ := strings.Cut(strings.TrimPrefix(*value, "oci-layout://"), "@")
			reads = append(reads, layout)
		case !IsRemote(*value):
			reads = append(reads, *value)
		}
	}
	for _, s := range t.Secrets {
		if s["src"] != "" {
			reads = append(reads, s["src"])
		}
	}
	for _, s := range t.SSH {
		reads = append(reads, s.Paths()...)
	}
	for _, o := range t.Outputs {
		if o["dest"] != "" && o["dest"] != "-" {
			writes = append(writes, o["dest"])
		}
	}
	return reads, writes
}

// within reports whether a path lies in one of the directories, links aside.
func within(path string, allowed []string, dir string) bool {
	if slices.Contains(allowed, "*") {
		return true
	}
	resolved, err := resolvedPath(path, dir)
	if err != nil {
		return false
	}
	for _, in := range append([]string{dir}, allowed...) {
		root, err := resolvedPath(in, dir)
		if err != nil {
			continue
		}
		if rel, err := filepath.Rel(root, resolved); err == nil && filepath.IsLocal(rel) {
			return true
		}
	}
	return false
}

// resolvedPath returns an absolute path without links; what does not exist has none.
func resolvedPath(path, dir string) (string, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	path = filepath.Clean(path)
	resolved, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
		return resolved, err
	}
	parent, err := resolvedPath(filepath.Dir(path), dir)
	return filepath.Join(parent, filepath.Base(path)), err
}
