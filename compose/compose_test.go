package compose

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// load reads the files of a project; compose.yaml and then over.yaml, if it is there.
func load(t *testing.T, files map[string]string, env map[string]string) (*Project, error) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Files: []string{"compose.yaml"}, Dir: dir, Env: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	if files["over.yaml"] != "" {
		o.Files = append(o.Files, "over.yaml")
	}
	return Load(o)
}

func TestLoad(t *testing.T) {
	p, err := load(t, map[string]string{
		"compose.yaml": `
name: shop
include: [sub/more.yaml]
services:
  web:
    extends: {file: common/base.yaml, service: base}
    depends_on: [db]
    build:
      args: [A=1, B=$V, C]
      tags: [one]
      labels: {n: 1.50, t: true}
      ulimits: {nofile: 5, nproc: {soft: 1, hard: 2}}
  db: {image: "db:${V:-none}", build: .}
`,
		"common/base.yaml": "services: {base: {build: {context: src, additional_contexts: {lib: ../lib, img: \"docker-image://x\"}, args: {A: 0, Z: 9}}}}",
		"sub/more.yaml":    "services: {extra: {build: {dockerfile: D}}}",
		"over.yaml":        "services: {web: {build: {tags: !override [two], args: {A: 2}}}, db: {build: !reset null}}",
	}, map[string]string{"V": "v"})
	if err != nil {
		t.Fatal(err)
	}
	web, _ := json.Marshal(p.Services["web"].Build)
	for _, want := range []string{
		`"Context":"common/src"`, `"Args":{"A":"2","B":"v","C":null,"Z":"9"}`, `"Tags":["two"]`, `"Labels":{"n":"1.5","t":"true"}`,
		`"Contexts":{"img":"docker-image://x","lib":"common/../lib"}`, `"Ulimits":["nofile=5:5","nproc=1:2"]`,
	} {
		if !strings.Contains(string(web), want) {
			t.Errorf("the build of web is %s, without %s", web, want)
		}
	}
	if db := p.Services["db"]; db.Build != nil || db.Image != "db:v" {
		t.Errorf("db is %+v", db)
	}
	if extra := p.Services["extra"]; p.Name != "shop" || extra.Build.Context != "sub" || extra.Build.Dockerfile != "D" {
		t.Errorf("extra is %+v", extra.Build)
	}
}

// A file has any number of documents, of which each is on top of those before.
func TestDocuments(t *testing.T) {
	p, err := load(t, map[string]string{
		"compose.yaml": "services: {a: {build: {context: c, args: {A: 1, B: 1}, tags: [x]}}}\n---\n" +
			"services:\n  a: {build: {args: !reset null, tags: !override [y]}}\n" +
			"  b: {build: {pull: yes, no_cache: off, cache_from: [\"\", z]}}\n---\n# none\n",
		"over.yaml": "# none\n",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a := p.Services["a"].Build; a.Context != "c" || len(a.Args) > 0 || len(a.Tags) != 1 || a.Tags[0] != "y" {
		t.Errorf("a is %+v", a)
	}
	if b := p.Services["b"].Build; !b.Pull || b.NoCache || len(b.CacheFrom) != 1 {
		t.Errorf("b is %+v", b)
	}
}

// Included projects have the variables of the project above and, below them, those of their own env files.
func TestIncludedEnvironment(t *testing.T) {
	const args = "services: {%: {build: {args: {A: $A, B: $B, C: $C}}}}"
	p, err := load(t, map[string]string{
		"compose.yaml": "include: [one/o.yaml, {path: two/o.yaml, env_file: [e, f]}, {path: two/p.yaml, project_directory: one}," +
			"{path: two/q.yaml, env_file: /dev/null}]\n" + strings.ReplaceAll(args, "%", "main"),
		"one/o.yaml": "include: [deep/o.yaml]\n" + strings.ReplaceAll(args, "%", "one"), "one/.env": "A=1\nB=1\n",
		"one/deep/o.yaml": strings.ReplaceAll(args, "%", "deep"), "one/deep/.env": "B=2\nC=${A}3\n",
		"two/o.yaml": strings.ReplaceAll(args, "%", "two"), "two/.env": "B=no\n", "e": "B=e\nC=e\n", "f": "C=f\n",
		"two/p.yaml": strings.ReplaceAll(args, "%", "p"), "two/q.yaml": strings.ReplaceAll(args, "%", "q"),
	}, map[string]string{"A": "a"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"main": "a,,", "one": "a,1,", "deep": "a,1,a3", "two": "a,e,f", "p": "a,1,", "q": "a,,"} {
		b := p.Services[name].Build
		if got := *b.Args["A"] + "," + *b.Args["B"] + "," + *b.Args["C"]; got != want {
			t.Errorf("the arguments of %s are %s, want %s", name, got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	for text, want := range map[string]string{
		"services: {a: {biuld: .}}":                       `services.a: there is no attribute "biuld"`,
		"services: {a: {build: {contxt: .}}}":             "build.contxt: there is no such attribute",
		"servces: {}":                                     `no attribute "servces"`,
		"services:\n  a:\n    image: ${X:?no X}":          "compose.yaml:3: ",
		"services:\n  a: [":                               "line 2",
		"services: {a: {extends: a}}":                     "cycle",
		"services: {a: {extends: b}}":                     "no such service",
		"services: {a: {build: {args: x}}}":               "build.args",
		"include: [compose.yaml]":                         "cycle",
		"services: {a: {build: {no_cache: perhaps}}}":     "no_cache",
		"services: {a: {build: {extra_hosts: [h]}}}":      "HOST=ADDRESS",
		"services: {a: {command: x}}":                     "neither an image nor a build section",
		"include: [{path: compose.yaml, env_file: none}]": "none: no such file",
		"# none":                             "it is empty",
		"services: {a: {image: x}}\n---\n[]": "it is not a mapping",
		"services: {a: {image: $}}":          "$$",
		strings.Repeat("{a: ", 200) + strings.Repeat("}", 200): "nested",
	} {
		if _, err := load(t, map[string]string{"compose.yaml": text}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// The rows are those of https://github.com/compose-spec/compose-spec/blob/main/12-interpolation.md.
func TestInterpolate(t *testing.T) {
	env := map[string]string{"SET": "s", "EMPTY": ""}
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	for in, want := range map[string]string{
		"$SET": "s", "${SET}x": "sx", "$NONE": "", "${NONE:-d}": "d", "${EMPTY:-d}": "d", "${EMPTY-d}": "", "${SET:+r}": "r", "${EMPTY:+r}": "",
		"${EMPTY+r}": "r", "${NONE+r}": "", "$$SET": "$SET", "${NONE:-${SET}}": "s", "${NONE:-${EMPTY:-$SET}}": "s", "${SET:-${NONE:?x}}": "s",
		"${SET?x}": "s", "a}b": "a}b",
	} {
		if got, err := interpolate(in, lookup); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"${NONE:?x}", "${EMPTY:?x}", "${NONE?}", "${", "${SET", "$", "${SET:-x", "${1}", "${SET/x}"} {
		if got, err := interpolate(in, lookup); err == nil {
			t.Errorf("%s is %q, want an error", in, got)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("services: {a: {build: {context: ., args: [A=${B:-c}]}}}", "A=\"b\nc\"\n")
	f.Add("include: [{path: x}]\nservices: {a: {extends: {file: -}}}", "export A='b'#c")
	f.Fuzz(func(t *testing.T, file, env string) {
		none := func(string) (string, bool) { return "", false }
		_, _ = parseEnv(".env", env, none)
		p, err := Load(Options{Files: []string{"-"}, Stdin: strings.NewReader(file), Dir: t.TempDir(), Env: none})
		if err == nil {
			_, _ = p.Select(nil, []string{"*"}, true)
		}
	})
}
