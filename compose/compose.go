// Package compose reads compose files and says what their services build. It builds nothing, and runs no services.
//
// It reads what concerns builds, as https://github.com/compose-spec/compose-spec describes it; of the rest of a service only the names of
// the attributes are checked.
package compose

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

const (
	maxFile     = 1 << 20 // bytes of a file
	maxFiles    = 100     // with those that they include and extend
	maxServices = 10000
)

// DefaultFiles are looked for, in this order, where no file is named; only the first one counts. DefaultOverrides are read on top of it.
var (
	DefaultFiles     = []string{"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"}
	DefaultOverrides = []string{"compose.override.yml", "compose.override.yaml", "docker-compose.override.yml", "docker-compose.override.yaml"}
)

// Options say what to read.
type Options struct {
	// Files are read one on top of the other; "-" is Stdin. Paths in them are relative to Dir, the project's directory, which is the
	// working directory if it is "".
	Files []string
	Stdin io.Reader
	Dir   string
	// Env are the variables that files refer to.
	Env Lookup
	// Shown returns what errors call a file, whose path is absolute if Dir is; nil for its path.
	Shown func(path string) string
}

// Project is what the files say.
type Project struct {
	// Name is the attribute name of the files, "" for none.
	Name     string
	Services map[string]*Service
	// Secrets are the secrets of the project by name.
	Secrets map[string]Secret
}

// Service is one service.
type Service struct {
	Name, Image, Platform string
	Profiles, DependsOn   []string
	// Build is nil for a service that has only an image.
	Build *Build
}

// Secret is a file, or the variable of the environment that has it.
type Secret struct{ File, Env string }

// reader reads the files of a project.
type reader struct {
	options Options
	env     Lookup // of the file that is being read
	found   bool   // something was in a file
	files   int
	// open are the files, and the services of files, that are being read.
	open []string
}

// path returns the path of a file; "-" for Stdin.
func (r *reader) path(file string) string {
	if file == "-" || filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(r.options.Dir, file)
}

// shown returns what errors call a file.
func (r *reader) shown(file string) string {
	if file == "-" {
		return "standard input"
	}
	if r.options.Shown == nil {
		return r.path(file)
	}
	return r.options.Shown(r.path(file))
}

// Load reads a project. Errors name the file and, where it is known, the line or the attribute.
func Load(o Options) (*Project, error) {
	r := &reader{options: o, env: o.Env}
	all := object{}
	for _, file := range o.Files {
		m, err := r.file(file, "", all)
		if err != nil {
			return nil, err
		}
		all = m
	}
	if !r.found && len(o.Files) > 0 {
		return nil, fmt.Errorf("%s: this is not a compose file: it is empty", r.shown(o.Files[0]))
	}
	return project(all)
}

// document is one YAML document of a file after interpolation, with the paths of its values that are tagged !reset and !override. A file
// has any number of them, which are read one on top of the other.
type document struct {
	object
	tags map[string]string
}

// read returns the documents of a file.
func (r *reader) read(path string) ([]document, error) {
	if r.files++; r.files > maxFiles {
		return nil, fmt.Errorf("%s: there are more than %d files", r.shown(path), maxFiles)
	}
	data, err := r.data(path)
	if err != nil {
		return nil, err
	}
	var all []document
	for decoder := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var node yaml.Node
		if err := decoder.Decode(&node); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", r.shown(path), err)
		}
		d, err := r.document(path, &node)
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

func (r *reader) document(path string, node *yaml.Node) (document, error) {
	d := document{tags: map[string]string{}}
	if len(node.Content) == 0 {
		return d, nil
	}
	top := node.Content[0]
	if top.ShortTag() == "!!null" && len(top.Value) == 0 {
		return d, nil // a separator with nothing behind it
	}
	if top.Kind != yaml.MappingNode {
		return d, fmt.Errorf("%s:%d: this is not a compose file: it is not a mapping, as services: begins one", r.shown(path), top.Line)
	}
	r.found = true
	if err := r.prepare(top, "", d.tags, 0); err != nil {
		return d, fmt.Errorf("%s:%w", r.shown(path), err)
	}
	if err := node.Decode(&d.object); err != nil {
		return d, fmt.Errorf("%s: %w", r.shown(path), err)
	}
	return d, nil
}

func (r *reader) data(path string) ([]byte, error) {
	in := r.options.Stdin
	if path != "-" {
		f, err := os.Open(r.path(path))
		if err != nil {
			return nil, fmt.Errorf("read the compose file: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is larger than the %d MiB that are allowed", r.shown(path), maxFile>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("read the compose file: %w", err)
	}
	return data, nil
}

// prepare interpolates the values of a node, and takes the tags away that are compose's own. Keys are no values.
func (r *reader) prepare(n *yaml.Node, path string, tags map[string]string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%d: values are nested more deeply than %d", n.Line, maxDepth)
	}
	if n.Tag == "!reset" || n.Tag == "!override" {
		tags[path], n.Tag = n.Tag, ""
		if n.Kind == yaml.ScalarNode && n.Value == "null" {
			n.Tag = "!!null"
		}
	}
	switch n.Kind {
	case yaml.ScalarNode:
		if n.ShortTag() == "!!timestamp" { // compose knows no dates: it is the text that it is written as
			n.SetString(n.Value)
		}
		if !strings.Contains(n.Value, "$") {
			return nil
		}
		value, err := interpolate(n.Value, r.env)
		if err != nil {
			return fmt.Errorf("%d: %w", n.Line, err)
		}
		n.SetString(value)
	case yaml.SequenceNode:
		for _, item := range n.Content {
			if err := r.prepare(item, path, tags, depth+1); err != nil {
				return err
			}
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if err := r.prepare(n.Content[i+1], path+"/"+n.Content[i].Value, tags, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// file returns the contents of a file on top of base. dir is where the file's paths are relative to, as seen from the project.
func (r *reader) file(path, dir string, base object) (object, error) {
	if slices.Contains(r.open, path) {
		return nil, fmt.Errorf("%s includes itself, in a cycle", r.shown(path))
	}
	r.open = append(r.open, path)
	defer func() { r.open = r.open[:len(r.open)-1] }()
	docs, err := r.read(path)
	if err != nil {
		return nil, err
	}
	for _, d := range docs {
		if base, err = r.on(base, d, path, dir); err != nil {
			return nil, err
		}
	}
	return base, nil
}

// on returns a document of a file on top of base.
func (r *reader) on(base object, d document, path, dir string) (object, error) {
	m := d.object
	for key := range m {
		if !slices.Contains(topLevel(), key) && !strings.HasPrefix(key, "x-") {
			return nil, fmt.Errorf("%s: there is no attribute %q", r.shown(path), key)
		}
	}
	base, err := r.include(m, dir, base)
	if err != nil {
		return nil, fmt.Errorf("%s: include: %w", r.shown(path), err)
	}
	services, err := r.services(m, path, dir)
	if err != nil {
		return nil, err
	}
	out := object{"services": services}
	for _, key := range []string{"name", "secrets"} {
		if v, ok := m[key]; ok {
			out[key] = v
		}
	}
	if secrets, ok := out["secrets"].(object); ok {
		for _, v := range secrets {
			if s, ok := v.(object); ok && s["file"] != nil {
				s["file"] = within(dir, text(s["file"]))
			}
		}
	}
	for path, tag := range d.tags {
		remove(base, strings.Split(path, "/")[1:])
		if tag == "!reset" {
			remove(out, strings.Split(path, "/")[1:])
		}
	}
	return merged(base, out).(object), nil
}

// remove removes the value at a path of keys.
func remove(m object, path []string) {
	for ; len(path) > 1; path = path[1:] {
		next, ok := m[path[0]].(object)
		if !ok {
			return
		}
		m = next
	}
	if len(path) == 1 {
		delete(m, path[0])
	}
}

// include returns base with the projects that a file includes.
func (r *reader) include(m object, dir string, base object) (object, error) {
	list, ok := m["include"].([]any)
	if !ok && m["include"] != nil {
		return nil, errors.New("it is not a list of files")
	}
	for _, item := range list {
		paths := []any{item}
		o, _ := item.(object)
		if o != nil {
			if paths, ok = o["path"].([]any); !ok {
				paths = []any{o["path"]}
			}
		}
		inside := text(o["project_directory"])
		if inside == "" && len(paths) > 0 {
			inside = filepath.Dir(text(paths[0]))
		}
		sub := within(dir, inside)
		if sub == "." {
			sub = ""
		}
		outer := r.env
		env, err := r.included(o["env_file"], dir, sub)
		if err != nil {
			return nil, err
		}
		r.env = env
		for _, p := range paths {
			if base, err = r.file(within(dir, text(p)), sub, base); err != nil {
				return nil, err
			}
		}
		r.env = outer
	}
	return base, nil
}

// included returns the variables of an included project: those of the project that includes it and, below them, those of its env files;
// with none, those of .env in its directory sub if it exists. Paths of env files are relative to dir.
func (r *reader) included(envFiles any, dir, sub string) (Lookup, error) {
	files, err := stringList(envFiles)
	if err != nil {
		return nil, fmt.Errorf("env_file: %w", err)
	}
	for i, file := range files {
		files[i] = r.path(within(dir, file))
	}
	lookup, _, err := environment(r.path(sub), files, r.env)
	return lookup, err
}

// services returns the services of a file, with those that they extend.
func (r *reader) services(m object, path, dir string) (object, error) {
	if m["services"] == nil {
		return object{}, nil
	}
	all, ok := m["services"].(object)
	if !ok {
		return nil, fmt.Errorf("%s: services is not a mapping", r.shown(path))
	}
	if len(all) > maxServices {
		return nil, fmt.Errorf("%s: there are more than %d services", r.shown(path), maxServices)
	}
	out := object{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s, err := r.extended(all, name, path, dir, nil)
		if err != nil {
			return nil, err
		}
		out[name] = s
	}
	return out, nil
}

// extended returns a service of a file on top of the one that it extends. path are the services that extend it.
func (r *reader) extended(all object, name, file, dir string, path []string) (object, error) {
	id := r.shown(file) + ": services." + name
	if slices.Contains(path, id) {
		return nil, fmt.Errorf("%s: extends itself, in a cycle", id)
	}
	if len(path) > maxDepth {
		return nil, fmt.Errorf("%s: services extend each other more deeply than %d", id, maxDepth)
	}
	v, ok := all[name]
	if !ok {
		return nil, fmt.Errorf("%s: there is no such service", id)
	}
	s, err := canonical(v, dir)
	if err != nil {
		return nil, fmt.Errorf("%s %w", id, err)
	}
	for key := range s {
		if !slices.Contains(serviceAttributes(), key) && !strings.HasPrefix(key, "x-") {
			return nil, fmt.Errorf("%s: there is no attribute %q", id, key)
		}
	}
	extends := s["extends"]
	delete(s, "extends")
	if extends == nil {
		return s, nil
	}
	from, other, otherDir := all, text(extends), dir
	otherFile := file
	if o, ok := extends.(object); ok {
		other = text(o["service"])
		if f := text(o["file"]); f != "" {
			otherFile = within(dir, f)
			otherDir = filepath.Dir(otherFile)
			if otherDir == "." {
				otherDir = ""
			}
			docs, err := r.read(otherFile)
			if err != nil {
				return nil, fmt.Errorf("%s: extends: %w", id, err)
			}
			if len(docs) > 1 {
				return nil, fmt.Errorf("%s: extends: %s has several YAML documents, and one is read: include it", id, r.shown(otherFile))
			}
			from = object{}
			if len(docs) > 0 {
				from, _ = docs[0].object["services"].(object)
			}
		}
	}
	base, err := r.extended(from, other, otherFile, otherDir, append(path, id))
	if err != nil {
		return nil, fmt.Errorf("%s: extends: %w", id, err)
	}
	return merged(base, s).(object), nil
}

// topLevel are the attributes of a file, and serviceAttributes those of a service. They are split when a file is read: every start of kiln
// initialises this package.
var (
	topLevel = sync.OnceValue(func() []string {
		return strings.Fields("name version include services networks volumes secrets configs models")
	})
	serviceAttributes = sync.OnceValue(func() []string {
		return strings.Fields(`annotations attach blkio_config build cap_add cap_drop cgroup cgroup_parent command configs
		container_name cpu_count cpu_percent cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares cpus cpuset credential_spec depends_on
		deploy develop device_cgroup_rules devices dns dns_opt dns_search domainname entrypoint env_file environment expose extends
		external_links extra_hosts gpus group_add healthcheck hostname image init ipc isolation label_file labels links logging mac_address
		mem_limit mem_reservation mem_swappiness memswap_limit models network_mode networks oom_kill_disable oom_score_adj pid pids_limit
		platform ports post_start pre_stop privileged profiles provider pull_policy pull_refresh_after read_only restart runtime scale secrets
		security_opt shm_size stdin_open stop_grace_period stop_signal storage_opt sysctls tmpfs tty ulimits use_api_socket user userns_mode
		uts volumes volumes_from working_dir`)
	})
)
