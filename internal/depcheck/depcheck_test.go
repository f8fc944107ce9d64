// Package depcheck holds the directions in which kiln's packages import each other: text becomes a tree, the tree a graph, the
// graph records and layers, those an image. There is nothing in it but this test.
package depcheck

import (
	"bytes"
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kilnbuild/kiln/"

// allowed says for each package which others it may import; "internal" stands for the small nouns, which are all
// packages below internal that are not listed here. A package may always import its own internal packages.
var allowed = map[string][]string{
	"cmd/kiln":         {"internal/builder", "internal", "llb", "parser", "registry", "solver"}, // past the builder for types of errors and options only
	"internal/builder": {"cache", "exporter", "frontend", "llb", "parser", "registry", "sandbox", "snapshot", "solver", "solver/ops", "internal"},

	"parser":   {},
	"llb":      {},
	"frontend": {"parser", "llb", "internal/ignore"},

	"solver":     {"llb"},
	"cache":      {"solver", "internal"},
	"solver/ops": {"solver", "llb", "snapshot", "sandbox", "internal"},

	// Neither knows the other; both speak internal/mount.
	"snapshot": {"internal"},
	"sandbox":  {"internal"},

	"exporter": {"snapshot", "internal"},
	"registry": {"internal"},
}

// nouns are the packages below internal that know others of ours; the rest know nothing of kiln's.
var nouns = map[string][]string{
	"internal/cas":      {"internal/lock"},
	"internal/localdir": {"internal/ignore", "internal/layer", "internal/rootfs"},
	"internal/scratch":  {"internal/lock"},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func TestDirections(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasSuffix(name, "test") {
			continue // it serves tests alone, as registry/registrytest does
		}
		rules, ok := allowed[name]
		if isNoun(name) {
			rules, ok = nouns[name], true
		}
		if owner, _, found := strings.Cut(name, "/internal/"); found {
			rules, ok = nil, allowed[owner] != nil
		}
		if !ok {
			t.Errorf("%s is not listed in internal/depcheck: say there what it may import", name)
			continue
		}
		for _, path := range p.Imports {
			imported, ours := strings.CutPrefix(path, module)
			if !ours || strings.HasPrefix(imported, name+"/internal/") {
				continue
			}
			if strings.HasSuffix(imported, "test") {
				t.Errorf("%s imports %s, which is for tests", name, imported)
			} else if !slices.Contains(rules, imported) && !(isNoun(imported) && slices.Contains(rules, "internal")) {
				t.Errorf("%s imports %s, which it may not", name, imported)
			}
		}
	}
}

func isNoun(name string) bool { return strings.HasPrefix(name, "internal/") && allowed[name] == nil }

// Each package name says what the package is about; these say nothing.
func TestNames(t *testing.T) {
	for _, p := range packages(t) {
		for part := range strings.SplitSeq(strings.TrimPrefix(p.ImportPath, module), "/") {
			if slices.Contains([]string{"pkg", "util", "utils", "common", "types", "helper", "helpers"}, part) {
				t.Errorf("%s has %q in its name, which says nothing", p.ImportPath, part)
			}
		}
	}
}

// packages lists the packages of the module with what they import, tests aside.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := dec.Decode(&p)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Imports) > 0 {
			all = append(all, p)
		}
	}
	if len(all) < len(allowed) {
		t.Fatalf("go list names %d packages, fewer than there must be", len(all))
	}
	return all
}
