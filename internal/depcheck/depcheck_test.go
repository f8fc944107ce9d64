// Package depcheck holds the directions in which kiln's packages import each other: text becomes a tree, the tree a graph, the
// graph records and layers, those an image. There is nothing in it but this test.
package depcheck

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/kilnbuild/kiln/internal/rootdir"
)

const module = "github.com/kilnbuild/kiln/"

// allowed says for each package which others it may import; "internal" stands for the small nouns, which are all
// packages below internal that are not listed here: they know each other and nothing else of ours. A package may always
// import its own internal packages, and those the small nouns if it may.
var allowed = map[string][]string{
	// The commands for the root directory as a whole; those for images and builds are packages of their own.
	"cmd/kiln": {"cmd/internal/cli"},
	"cmd/internal/cli": {"cmd/internal/app", "cmd/internal/buildcmd", "cmd/internal/cachecmd", "cmd/internal/complete", "cmd/internal/help", "cmd/internal/imagecmd", "cmd/internal/manual",
		"cmd/internal/report", "cmd/internal/runcmd", "cmd/internal/signals", "store", "doctor", "events", "internal"},
	// What all commands need: the root directory with what works on it, and types of errors.
	"cmd/internal/app":      {"cmd/internal/console", "cmd/internal/dialect", "cmd/internal/help", "cmd/internal/report", "cmd/internal/signals", "build", "build/contexts", "store", "store/images", "progress", "events", "internal", "parser", "registry", "solver"},
	"cmd/internal/imagecmd": {"attestation", "attestation/slsa", "verify", "registry/layout", "cmd/internal/app", "cmd/internal/help", "cmd/internal/report", "cmd/internal/table", "cmd/internal/values", "store/images", "events", "exporter", "internal", "llb", "registry", "registry/auth", "registry/image"},
	"cmd/internal/buildcmd": {"cmd/internal/app", "cmd/internal/console", "cmd/internal/help", "cmd/internal/report", "cmd/internal/values", "bake", "build", "build/confine", "build/contexts", "build/set", "build/sources", "compose", "events", "exporter", "internal", "llb", "progress", "registry/auth", "sandbox"},
	"cmd/internal/runcmd":   {"cmd/internal/app", "cmd/internal/console", "cmd/internal/help", "cmd/internal/signals", "cmd/internal/values", "build/confine", "events", "internal", "run", "sandbox"},
	// The user's terminal, for a program.
	"cmd/internal/console": {"sandbox"},
	// What is read from commands and flags, whatever they are.
	"cmd/internal/help": {},
	// What shells complete, which is read from wherever it is without opening the root directory.
	"cmd/internal/complete": {"cmd/internal/buildcmd", "cmd/internal/help", "cmd/internal/values", "build/contexts", "history", "parser",
		"progress", "registry/auth", "snapshot/blob", "store/peek", "internal"},
	"cmd/internal/manual": {"cmd/internal/help", "internal"},
	// What other tools call things.
	"cmd/internal/dialect": {},
	"cmd/internal/table":   {"internal"},
	"cmd/internal/signals": {"internal"},
	// The values of flags of kiln build, and the text of results.
	"cmd/internal/cachecmd": {
		"cmd/internal/app", "cmd/internal/report", "cmd/internal/values", "build/caching", "cache/mounts", "cache/pack", "exporter", "registry",
		"snapshot/dir", "solver", "internal",
	},
	"cmd/internal/values": {"attestation", "build", "build/caching", "build/confine", "build/contexts", "build/early", "llb", "internal"},
	"cmd/internal/report": {"build", "frontend/quote", "history", "internal", "llb", "parser", "progress", "solver", "store"},

	"build": {
		"attestation", "parser", "signature/attached", "build/attesting", "build/provenance", "build/scanning", "build/bases", "build/caching",
		"build/confine", "build/contexts", "build/early", "build/imaging", "build/lookup", "build/outputs", "build/reproduce", "build/sources", "sbom", "store",
		"store/images",
		"events", "history", "exporter", "frontend", "frontend/imageconfig", "frontend/lint", "frontend/outline", "frontend/source", "llb",
		"registry", "registry/auth", "registry/image", "registry/layout", "sandbox", "snapshot", "snapshot/blob", "solver", "solver/execute",
		"solver/explain", "solver/plan",
		"solver/session", "solver/container", "solver/work", "internal",
	},
	// What becomes of the result of a build, as far as it is known before.
	"build/outputs": {"attestation", "build/reproduce", "engine", "exporter", "llb", "snapshot/blob", "internal"},
	// BuildKit's API: requests become jobs of build. Nothing else imports grpc, but for the binary that serves it.
	"daemon": {"daemon/directories", "daemon/trees", "build/imaging", "daemon/policies", "build/bases", "daemon/asked", "attestation", "build/provenance", "daemon/llbpb", "build", "build/caching", "build/contexts",
		"daemon/apierr", "daemon/attrs", "daemon/client", "daemon/records", "daemon/returned", "daemon/status", "daemon/subrequest", "events", "frontend",
		"frontend/source", "llb", "parser", "snapshot/compose", "solver", "store", "daemon/containers", "daemon/gateway", "solver/container",
		"solver/files", "solver/work", "internal"},
	"daemon/asked": {"attestation/slsa", "build/provenance", "daemon/llbpb", "llb"},
	"daemon/attrs": {"attestation", "build", "build/caching", "build/confine", "build/contexts", "exporter", "llb", "internal"},
	// Files of results, and what a frontend is given of this machine.
	"daemon/trees":       {"build/contexts", "snapshot/compose", "internal"},
	"daemon/directories": {"llb", "solver/session", "internal"},
	"daemon/llbpb":       {"llb", "internal"},
	"daemon/client":      {"cache/remote", "exporter", "events", "llb", "registry/auth", "registry/image", "internal"},
	// Which sources a build may use, and what they are now.
	"build/lookup":    {"build/bases", "llb", "internal"},
	"daemon/policies": {"llb", "internal"},
	// What clients are told of their builds: their errors, what happens, and answers to questions about a Dockerfile.
	"daemon/apierr": {"build/bases", "frontend/fault", "frontend/source", "llb", "parser", "registry", "registry/image", "sandbox", "solver",
		"solver/execute", "solver/files", "internal"},
	"daemon/status":     {"daemon/apierr", "events", "frontend/lint", "llb", "internal"},
	"daemon/records":    {"daemon/apierr", "daemon/status", "history", "store", "internal"},
	"daemon/returned":   {"attestation", "daemon/trees", "llb", "internal"},
	"daemon/subrequest": {"build", "daemon/apierr", "frontend/outline", "llb"},
	"cmd/kilnd":         {"build", "cmd/internal/app", "cmd/internal/cli", "daemon", "daemon/client", "registry", "store", "internal"},
	// Containers of clients: processes that are no step.
	"daemon/gateway":    {"daemon/apierr", "llb", "sandbox", "solver", "solver/container", "solver/execute", "solver/work"},
	"daemon/containers": {"daemon/apierr", "llb", "sandbox", "solver", "solver/container", "solver/work", "internal"},
	// How a build describes itself.
	"build/attesting":  {"attestation", "attestation/slsa", "build/provenance", "build/scanning", "exporter", "frontend", "frontend/imageconfig", "llb", "solver", "internal"},
	"build/scanning":   {"attestation", "events", "frontend", "llb", "sbom", "solver", "internal"},
	"build/provenance": {"attestation", "attestation/slsa", "build/sources", "frontend", "frontend/lint", "frontend/quote", "frontend/source", "llb", "internal"},
	// How the processes of builds and containers are confined.
	"build/confine": {"sandbox", "internal"},
	// The images that a build starts from.
	"build/bases": {"attestation", "build/sources", "store/images", "events", "frontend", "llb", "registry", "registry/image", "registry/layout", "solver/execute", "internal"},
	// What a build reads, by steps that build does for it.
	"build/contexts": {"frontend/source", "llb", "registry/layout", "snapshot/compose", "solver", "solver/files", "solver/session", "internal"},
	// What a build has to do with caches that travel.
	"build/caching": {
		"cache", "cache/mounts", "cache/pack", "cache/remote", "cache/remote/azblob", "cache/remote/bucket", "cache/remote/gha", "cache/remote/s3", "events", "llb", "registry", "registry/image", "snapshot", "snapshot/blob", "snapshot/dir", "solver",
		"solver/execute", "store/images", "internal",
	},
	// What makes a build the same everywhere.
	"build/reproduce": {"build/caching", "events", "frontend", "llb", "snapshot/blob", "solver", "snapshot", "internal"},
	"build/imaging":   {"exporter", "frontend", "frontend/imageconfig", "llb", "snapshot/blob", "solver", "solver/execute", "internal"},
	"build/early":     {"events", "exporter", "llb", "snapshot/blob", "internal"},
	// What a build takes from elsewhere, under which names.
	"build/sources": {"build/contexts", "events", "llb", "registry/layout", "solver/plan", "internal"},
	// Several builds together.
	"build/set": {"build", "store", "events", "llb", "registry/layout"},
	// A container, which is a step with what a RUN has not.
	"run":    {"build/confine", "store", "store/images", "events", "llb", "registry/image", "sandbox", "snapshot", "solver", "solver/execute", "solver/session", "solver/work", "internal"},
	"doctor": {"store", "sandbox", "sandbox/emulation", "registry/auth", "internal"},

	// The root directory: store knows the parts that lie in it, and no part knows store.
	"store":        {"cache", "events", "exporter", "history", "llb", "sandbox", "sbom", "snapshot", "snapshot/blob", "solver", "solver/explain", "internal"},
	"store/images": {"attestation", "signature", "signature/attached", "store", "events", "exporter", "snapshot", "snapshot/blob", "llb", "registry", "registry/image", "registry/layout", "internal"},

	"store/peek": {"attestation", "snapshot/blob", "llb", "internal"},

	// What files say of builds: compose files, and bake definitions, whose language is in packages of its own.
	"compose":              {},
	"bake":                 {"compose", "llb", "internal"},
	"bake/internal/values": {"bake/internal/syntax"},

	"parser": {},
	"llb":    {},
	"frontend": {"frontend/expand", "frontend/fault", "frontend/imageconfig", "frontend/lint", "frontend/mounts", "frontend/outline",
		"frontend/scan", "frontend/source",
		"parser", "llb", "internal/chmod", "internal/ignore", "internal/imagename", "internal/remoteurl", "internal/suggest"},

	// What the frontend consists of. None of them knows how instructions become vertices.
	"frontend/expand":      {},
	"frontend/fault":       {},
	"frontend/imageconfig": {"frontend/expand", "llb"},
	"frontend/quote":       {"frontend/lint", "parser"},
	"frontend/lint":        {"parser", "llb", "internal/ignore", "internal/remoteurl"},
	"frontend/mounts":      {"llb"},
	"frontend/outline":     {"frontend/expand", "frontend/lint", "parser"},
	"frontend/scan":        {"frontend/expand", "llb"},
	"frontend/source":      {"parser", "llb", "internal/imagename", "internal/remoteurl"},

	// What happens, and how it is shown: whatever makes something happen may say so, and nothing else is known of a printer.
	"events":   {"llb", "internal"},
	"progress": {"events", "llb", "internal"},
	"history":  {"events", "llb", "internal"},

	"solver": {"llb", "events"},
	// Caches that travel: what they hold, and where that is kept.
	"cache/pack":   {"solver", "internal"},
	"cache/remote": {"cache/pack", "registry", "solver", "internal"},
	// Services that keep caches; bucket says what is where in those that keep objects by key.
	"cache/remote/bucket": {"cache/pack", "internal"},
	"cache/remote/s3":     {"cache/remote/bucket", "internal"},
	"cache/remote/azblob": {"cache/remote/bucket", "internal"},
	"cache/remote/gha":    {"cache/pack", "cache/remote", "cache/remote/azblob", "cache/remote/bucket", "internal"},
	// What is in cache mounts, as blobs.
	"cache/mounts": {"cache/pack", "snapshot/dir", "internal"},
	"cache":        {"solver", "llb", "internal"},

	// What decides a step, and the doing of it: they share work and files, do not know each other, and only the second one runs processes.
	"solver/explain": {"solver", "llb", "events", "internal"},
	"solver/claims":  {"snapshot", "internal"},
	"solver/session": {"llb", "internal"},
	"solver/work":    {"solver", "llb"},
	"solver/files":   {"llb", "snapshot", "snapshot/compose", "snapshot/dir", "internal"},
	"solver/plan":    {"solver", "solver/files", "solver/session", "solver/work", "llb", "snapshot/compose", "internal"},
	"solver/execute": {"solver", "solver/claims", "solver/files", "solver/session", "solver/work", "llb", "events", "snapshot",
		"snapshot/blob", "snapshot/compose", "snapshot/diff", "snapshot/roots", "sandbox", "sandbox/emulation", "internal"},
	// Processes that are no step.
	"solver/container": {"solver/execute", "solver/work", "llb", "sandbox"},

	// Neither knows the other; both speak internal/mount.
	"snapshot":         {"events", "snapshot/blob", "snapshot/compose", "snapshot/diff", "snapshot/dir", "snapshot/roots", "internal"},
	"snapshot/blob":    {"events", "internal"},
	"snapshot/compose": {"internal"},
	"snapshot/diff":    {"snapshot/dir", "snapshot/roots", "internal"},
	"snapshot/dir":     {"internal"},
	"snapshot/roots":   {"snapshot/dir", "internal"},
	"sandbox":          {"internal"},

	"sandbox/internal/socketcall": {"sandbox/internal/calls", "sandbox/internal/seccomp", "internal"},

	// Which programs a sandbox can execute, by trying.
	"sandbox/emulation": {"sandbox", "internal"},
	// Engines that run images get them as an exporter writes them.
	"engine": {"exporter", "internal"},

	// Statements about images, and the descriptions of builds.
	"attestation":      {"internal"},
	"attestation/slsa": {"attestation"},

	// The packages in images, from their files.
	"sbom":                   {"internal"},
	"sbom/internal/binaries": {"sbom/internal/found"},
	"sbom/internal/language": {"sbom/internal/found"},
	"sbom/internal/rpm":      {"sbom/internal/found"},
	"sbom/internal/spdx":     {"sbom/internal/found", "internal"},
	"sbom/internal/system":   {"sbom/internal/found"},

	// Signatures of images: their form, where they are kept, and what makes an image trusted.
	"signature":          {"attestation", "internal"},
	"signature/attached": {"attestation", "signature", "registry", "registry/image", "registry/layout", "internal"},
	"verify":             {"attestation", "attestation/slsa", "signature", "store/images", "registry/image", "internal"},

	"exporter":        {"attestation", "snapshot/blob", "llb", "internal"},
	"registry":        {"registry/auth", "registry/image", "internal"},
	"registry/auth":   {"internal"},
	"registry/image":  {"attestation", "internal"},
	"registry/layout": {"registry/image", "internal"},

	"bench": {"internal/gunzip"}, // it runs kiln as others do, but for the decompression alone
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
			rules, ok = []string{"internal"}, true
		}
		if owner, _, found := strings.Cut(name, "/internal/"); found && !ok {
			rules, ok = nil, allowed[owner] != nil
			if slices.Contains(allowed[owner], "internal") {
				rules = []string{"internal"}
			}
		}
		if !ok {
			t.Errorf("%s is not listed in internal/depcheck: say there what it may import", name)
			continue
		}
		served := name == "cmd/kilnd" || name == "daemon" || strings.HasPrefix(name, "daemon/")
		for _, path := range p.Imports {
			if !served && (strings.HasPrefix(path, "google.golang.org/grpc") || strings.HasPrefix(path, "github.com/moby/buildkit/session")) {
				t.Errorf("%s imports %s, which only what serves BuildKit's API does", name, path)
			}
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

// isNoun reports whether a package is one of the small nouns.
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

// top is the module's directory.
const top = "../.."

// packages reads what the packages of the module import, tests aside. It reads the files itself: go test does not know what
// go list reads, and would take an earlier result for that of today's files.
func packages(t *testing.T) []pkg {
	t.Helper()
	imports := map[string][]string{}
	for _, f := range files(t) {
		dir := module + strings.TrimPrefix(filepath.ToSlash(filepath.Dir(f.path)), top+"/")
		for _, i := range f.tree.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(imports[dir], name) {
				imports[dir] = append(imports[dir], name)
			}
		}
	}
	var all []pkg
	for _, path := range slices.Sorted(maps.Keys(imports)) {
		all = append(all, pkg{path, imports[path]})
	}
	if len(all) < len(allowed) {
		t.Fatalf("there are %d packages, fewer than there must be", len(all))
	}
	return all
}

// TestRootNames holds that the names of what lies in the root directory are in internal/rootdir alone: no path is joined of them as text.
func TestRootNames(t *testing.T) {
	for _, f := range files(t) {
		if strings.HasSuffix(f.path, "internal/rootdir/parts.go") || strings.Contains(f.path, "/bench/") || strings.HasSuffix(filepath.Dir(f.path), "test") {
			continue
		}
		ast.Inspect(f.tree, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); !ok || sel.Sel.Name != "Join" || fmt.Sprint(sel.X) != "filepath" || len(call.Args) < 2 {
				return true
			}
			if name, ok := call.Args[1].(*ast.BasicLit); ok {
				if s, err := strconv.Unquote(name.Value); err == nil && rootdir.Known(s) {
					t.Errorf("%s has %s in it: use the name from internal/rootdir", f.set.Position(call.Pos()), name.Value)
				}
			}
			return true
		})
	}
}

// Packages and structs that a reader can take in. A package that is too large is listed with the reason.
const (
	maxPackage = 3000 // lines of production code, with comments
	maxBuild   = 1600 // lines of code of build, without comments and empty lines: it composes, and does nothing itself
	maxFields  = 20   // of a struct
)

// large are the packages and structs that are larger, with the reason. An entry that is not needed any more is an error.
var large = map[string]string{
	"bake.Target":   "its fields are the attributes of a target in bake definitions",
	"compose.Build": "its fields are the attributes of a build in compose files",
}

func TestSizes(t *testing.T) {
	lines, code := map[string]int{}, map[string]int{}
	found := map[string]bool{}
	tooLarge := func(name, format string, args ...any) {
		found[name] = true
		if large[name] == "" {
			t.Errorf("%s "+format, append([]any{name}, args...)...)
		}
	}
	for _, f := range files(t) {
		dir := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(f.path)), top+"/")
		lines[dir] += f.set.File(f.tree.Pos()).LineCount()
		code[dir] += codeLines(f)
		ast.Inspect(f.tree, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if s, ok := spec.Type.(*ast.StructType); ok && s.Fields.NumFields() > maxFields {
					tooLarge(dir+"."+spec.Name.Name, "has %d fields, more than %d: group them", s.Fields.NumFields(), maxFields)
				}
			}
			return true
		})
	}
	for dir, n := range lines {
		if n > maxPackage {
			tooLarge(dir, "has %d lines, more than %d: split it", n, maxPackage)
		}
	}
	if n := code["build"]; n > maxBuild {
		t.Errorf("build has %d lines of code, more than %d: what is not composition has a place elsewhere", n, maxBuild)
	}
	for name := range large {
		if !found[name] {
			t.Errorf("%s is not too large any more: remove it from the list", name)
		}
	}
	t.Logf("build has %d lines of code", code["build"])
}

// codeLines returns how many lines of a file have something else than a comment.
func codeLines(f file) int {
	has := map[int]bool{}
	ast.Inspect(f.tree, func(n ast.Node) bool {
		switch n.(type) {
		case nil, *ast.Comment, *ast.CommentGroup:
			return false
		}
		has[f.set.Position(n.Pos()).Line], has[f.set.Position(n.End()-1).Line] = true, true
		return true
	})
	return len(has)
}

// limit matches a package and the names that docs/limits.md says are in it, each in backquotes.
var limit = regexp.MustCompile("`((?:[a-z]+/)*[a-z]+)`((?:,? `[A-Za-z]+`)+)")

// TestLimits holds that docs/limits.md names constants that exist, in the packages that have them.
func TestLimits(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(top, "docs/limits.md"))
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]bool{}
	for _, f := range files(t) {
		dir := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(f.path)), top+"/")
		ast.Inspect(f.tree, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for _, name := range n.Names {
					declared[dir+" "+name.Name] = true
				}
			case *ast.TypeSpec:
				declared[dir+" "+n.Name.Name] = true
			case *ast.FuncDecl:
				declared[dir+" "+n.Name.Name] = true
			}
			return true
		})
	}
	found := 0
	for _, m := range limit.FindAllStringSubmatch(string(text), -1) {
		for name := range strings.FieldsFuncSeq(m[2], func(r rune) bool { return !unicode.IsLetter(r) }) {
			if found++; !declared[m[1]+" "+name] {
				t.Errorf("docs/limits.md says that %s has %s, and it has not", m[1], name)
			}
		}
	}
	if found < 50 {
		t.Errorf("docs/limits.md names %d constants, fewer than it must", found)
	}
}

// file is a file of production code.
type file struct {
	path string
	set  *token.FileSet
	tree *ast.File
}

// files parses all production code of the module.
func files(t *testing.T) []file {
	t.Helper()
	var all []file
	err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && path != top && (e.Name() == "testdata" || strings.HasPrefix(e.Name(), ".")) {
			return fs.SkipDir
		}
		if _, err := os.Stat(filepath.Join(path, "go.mod")); e.IsDir() && path != top && err == nil {
			return fs.SkipDir // another module
		}
		if e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err == nil {
			all = append(all, file{path, set, tree})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
