package bake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// load reads the files of a directory in the order of their names.
func load(t testing.TB, env map[string]string, files ...string) (*Definition, error) {
	t.Helper()
	o := Options{Dir: t.TempDir(), Platform: "linux/amd64", Env: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	for i := 0; i < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(o.Dir, files[i]), []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
		o.Files = append(o.Files, files[i])
	}
	return Load(t.Context(), o)
}

// printed returns the targets of a plan as JSON.
func printed(t *testing.T, d *Definition, q Request) string {
	t.Helper()
	p, err := d.Plan(q)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(p.Targets)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPlan(t *testing.T) {
	for _, tc := range []struct {
		name, hcl, want string
		env             map[string]string
		q               Request
	}{
		{
			name: "a parent's attributes are joined, replaced or appended to",
			hcl: `target "default" {
  inherits = ["p", "q"]
  args = { A = "own", C = null }
  tags = []
  cache-from = ["own"]
  attest = ["type=sbom,generator=own"]
}
target "p" {
  args = { A = "p", B = "p", C = "p" }
  tags = ["p"]
  cache-from = ["p", "own"]
  platforms = ["linux/amd64"]
}
target "q" {
  args = { B = "q" }
  attest = ["type=sbom", "type=provenance,disabled=true"]
}`,
			want: `{"default":{"attest":[{"generator":"own","type":"sbom"},{"disabled":true,"type":"provenance"}],"context":".","dockerfile":"Dockerfile",` +
				`"args":{"A":"own","B":"q","C":"p"},"cache-from":[{"ref":"p","type":"registry"},{"ref":"own","type":"registry"}],"platforms":["linux/amd64"]}}`,
		},
		{
			name: "the environment overrides variables by their types",
			hcl: `variable "L" { type = list(number) }
variable "M" { type = map(bool) }
variable "O" { type = object({ a = string }) }
variable "N" { default = 1 }
variable "S" { type = string }
target "default" { args = { L = L[1] + 1, M = M.x, O = O.a, N = N + 1, S = S == null ? "null" : S } }`,
			env:  map[string]string{"L": "1,2", "M": "x:true", "O_JSON": `{"a": "json"}`, "N": "41"},
			want: `{"default":{"context":".","dockerfile":"Dockerfile","args":{"L":"3","M":"true","N":"42","O":"json","S":"null"}}}`,
		},
		{
			name: "--set replaces, appends and reaches parents",
			hcl: `target "default" {
  inherits = ["p"]
  tags = ["a"]
}
target "p" { output = ["type=docker"] }`,
			q: Request{Sets: []string{"*.tags+=b", "p.args.A.B=1", "default.no-cache=true", "p.push=true"}, Flags: Flags{Provenance: "mode=min"}},
			want: `{"default":{"attest":[{"mode":"min","type":"provenance"}],"context":".","dockerfile":"Dockerfile","args":{"A.B":"1"},"tags":["a","b"],` +
				`"output":[{"type":"docker"},{"push":"true","type":"image"}],"no-cache":true}}`,
		},
		{
			name: "a target that others have as a context is not exported",
			hcl: `target "default" {
  name     = "app-${v}"
  matrix   = { v = ["1", "2"] }
  contexts = { base = "target:base" }
  labels   = { v = "$${v}" }
}
target "base" { output = ["type=local,dest=out"] }`,
			q: Request{Names: []string{"app-?"}},
			want: `{"app-1":{"context":".","contexts":{"base":"target:base"},"dockerfile":"Dockerfile","labels":{"v":"$${v}"}},` +
				`"app-2":{"context":".","contexts":{"base":"target:base"},"dockerfile":"Dockerfile","labels":{"v":"$${v}"}},` +
				`"base":{"context":".","dockerfile":"Dockerfile","output":[{"type":"cacheonly"}]}}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := load(t, tc.env, "docker-bake.hcl", tc.hcl)
			if err != nil {
				t.Fatal(err)
			}
			if got := printed(t, d, tc.q); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

// The printed plan is a definition that means the same.
func TestPrintedIsADefinition(t *testing.T) {
	d, err := load(t, nil, "docker-bake.hcl", `target "default" {
  args = { A = "$${X} %%{if}" }
  labels = { l = "a\"b" }
  dockerfile-inline = "FROM scratch\nLABEL a=$${A}"
  annotations = ["index:a=$${X}"]
  output = [{ type = "oci", dest = "a,b" }]
  secret = ["id=s,env=S"]
}`)
	if err != nil {
		t.Fatal(err)
	}
	p, err := d.Plan(Request{})
	if err != nil {
		t.Fatal(err)
	}
	var first strings.Builder
	if err := p.Print(&first); err != nil {
		t.Fatal(err)
	}
	if d, err = load(t, nil, "again.json", first.String()); err != nil {
		t.Fatal(err)
	}
	if p, err = d.Plan(Request{}); err != nil {
		t.Fatal(err)
	}
	var second strings.Builder
	if err := p.Print(&second); err != nil {
		t.Fatal(err)
	}
	if first.String() != second.String() {
		t.Errorf("printed\n%s\nand again\n%s", &first, &second)
	}
}

func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		name, hcl, want string
		q               Request
	}{
		{name: "unknown attribute", hcl: "target \"default\" {\n  tag = [\"x\"]\n}", want: "docker-bake.hcl:2: a target has no attribute tag: did you mean tags?"},
		{name: "unknown block", hcl: `targets "x" {}`, want: "docker-bake.hcl:1: there are no blocks of type targets: did you mean target?"},
		{name: "block for a map", hcl: "target \"x\" {\n  args {\n    A = 1\n  }\n}", want: "docker-bake.hcl:2: args is not a block: write args = "},
		{name: "type", hcl: `target "default" { tags = "x" }`, want: "docker-bake.hcl:1: tags of the target default: its type is string, and it must be a list of strings: write [ ]"},
		{
			name: "cycle of attributes", hcl: `target "a" { tags = target.b.tags }
target "b" { tags = target.a.tags }`, want: "refers to itself, in a cycle: target.a.tags, target.b.tags, target.a.tags",
		},
		{name: "cycle of functions", hcl: "function \"f\" {\n  params = []\n  result = f()\n}", want: "the function f refers to itself, in a cycle"},
		{
			name: "cycle of inherits", hcl: `target "default" { inherits = ["b"] }
target "b" { inherits = ["default"] }`, want: "inherits from itself, in a cycle: default, b, default",
		},
		{name: "cycle of groups", hcl: "group \"default\" { targets = [\"b\"] }\ngroup \"b\" { targets = [\"default\"] }", want: "in a cycle: default, b, default"},
		{name: "validation", hcl: `variable "V" {
  default = 1
  validation {
    condition     = V > 1
    error_message = "V is ${V}"
  }
}`, want: "docker-bake.hcl:4: the variable V is invalid: V is 1"},
		{name: "names of a matrix", hcl: `target "x" { matrix = { a = [1, 2] } }`, want: "makes two targets named x: set name to a text"},
		{name: "key of --set", hcl: `target "default" {}`, q: Request{Sets: []string{"default.tagss=x"}}, want: `the key "tagss" cannot be set`},
		{name: "target of --set", hcl: `target "default" {}`, q: Request{Sets: []string{"defult.tags=x"}}, want: "there is no target defult: did you mean default?"},
		{name: "value of --set", hcl: `target "default" {}`, q: Request{Sets: []string{"default.pull=x"}}, want: `pull: "x" is neither true nor false`},
		{name: "secret without a file", hcl: `target "default" { secret = ["id=s,src=nothing"] }`, want: "secret s: the file nothing: no such file or directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := load(t, nil, "docker-bake.hcl", tc.hcl)
			if err == nil {
				_, err = d.Plan(tc.q)
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got the error %v, want one with %q", err, tc.want)
			}
		})
	}
}

// A few lines cannot take any amount of memory, time or stack.
func TestLimits(t *testing.T) {
	doubling := func(format string) string {
		var b strings.Builder
		for i := range 90 {
			fmt.Fprintf(&b, format+"\n", i, i+1, i+1)
		}
		return b.String()
	}
	large := `variable "V" { default = join("", [for i in range(1000): join("", [for j in range(100): "0123456789"])]) }` + "\n"
	for name, hcl := range map[string]string{
		"text that doubles":        doubling(`variable "V%d" { default = "${V%d}${V%d}" }`) + `variable "V90" { default = "x" }`,
		"lists that double":        doubling(`variable "V%d" { default = [V%d, V%d] }`) + `variable "V90" { default = "x" }`,
		"attributes that double":   doubling(`target "t%d" { description = "${target.t%d.description}${target.t%d.description}" }`) + `target "t90" { description = "x" }`,
		"functions that double":    "function \"f90\" {\n params = []\n result = 1\n}\n" + doubling("function \"f%d\" {\n params = []\n result = f%d() + f%d()\n}") + "target \"x\" { args = { A = f0() } }",
		"a template of large text": large + `target "x" { args = { A = "` + strings.Repeat("${V}", 10000) + `" } }`,
		"a list of large texts":    large + `target "x" { tags = [` + strings.Repeat(`"${V}x",`, 1000) + `] }`,
		"nested for":               `target "x" { args = { A = length([for a in range(1000): length([for b in range(1000): length(range(1000))])]) } }`,
		"nested lists":             `target "x" { tags = [for a in range(1000): [for b in range(1000): a]] }`,
		"parentheses":              `target "x" { tags = ` + strings.Repeat("(", 2000) + "1" + strings.Repeat(")", 2000) + ` }`,
		"templates in templates":   `target "x" { tags = ` + strings.Repeat(`"${`, 2000) + "1" + strings.Repeat(`}"`, 2000) + ` }`,
		"unary operators":          `target "x" { pull = ` + strings.Repeat("!", 12000) + `true }`,
		"binary operators":         `target "x" { args = { A = ` + strings.Repeat("1+", 12000) + `1 } }`,
		"conditions":               `target "x" { args = { A = ` + strings.Repeat("true?1:", 12000) + `1 } }`,
		"indexes":                  `target "x" { args = { A = L` + strings.Repeat("[0][L]", 6000) + ` } }`,
		"a large number":           `target "x" { args = { A = 1e300000000 } }`,
		"a product of numbers":     "variable \"A\" { default = 1e1000 }\ntarget \"x\" { args = { A = A" + strings.Repeat("*A", 2000) + " } }",
		"join":                     large + `target "x" { args = { A = join(V, range(1000)) } }`,
		"replace":                  large + `target "x" { args = { A = replace(V, "", V) } }`,
		"regex_replace":            large + `target "x" { args = { A = regex_replace(V, "", V) } }`,
		"format":                   `target "x" { args = { A = format("%1000000000d", 1) } }`,
		"format of one argument":   large + `target "x" { args = { A = format("` + strings.Repeat("%[1]s", 10000) + `", V) } }`,
		"indent":                   `target "x" { args = { A = indent(1000000000, "a\nb") } }`,
		"setproduct":               `target "x" { args = { A = length(setproduct(` + strings.Repeat("range(1000),", 6) + `[1])) } }`,
		"bcrypt":                   `target "x" { args = { A = join("", [for i in range(1000): bcrypt("x", 14)]) } }`,
		"distinct":                 `target "x" { args = { A = length([for i in range(1000): length(distinct(range(1000)))]) } }`,
		"setintersection":          `target "x" { args = { A = length([for i in range(1000): length(setintersection(range(1000), range(1000)))]) } }`,
		"matrix":                   "target \"x\" {\n name = \"x\"\n matrix = { a = range(1000), b = range(1000), c = range(1000) }\n}",
		"targets":                  strings.Repeat("target \"x\" {}\n", maxTargets+1),
		"variables that refer":     doubling("variable \"V%d\" { default = V%d == V%d }") + doubling("variable \"W%d\" { default = W%d == W%d }") + "variable \"V90\" { default = W0 }\nvariable \"W90\" { default = 1 }",
		"targets that inherit":     doubling(`target "t%d" { inherits = ["t%d", "t%d"] }`) + doubling(`target "u%d" { inherits = ["u%d", "u%d"] }`) + "target \"t90\" { inherits = [\"u0\"] }\ntarget \"u90\" {}\ngroup \"default\" { targets = [\"t0\"] }",
		"inherited mappings":       "target \"p\" { args = { for i in range(1000): \"a${i}\" => i } }\ntarget \"default\" {\n inherits = [\"p\"]\n name = \"x${a}-${b}\"\n matrix = { a = range(100), b = range(99) }\n}",
		"inherited texts":          large + "target \"p\" { dockerfile-inline = V }\ntarget \"default\" {\n inherits = [\"p\"]\n name = \"x${a}\"\n matrix = { a = range(100) }\n}",
		"parents that are many":    "target \"p\" { tags = range(1000) }\ntarget \"default\" { inherits = [for i in range(1001): \"p\"] }",
		"contexts of contexts":     doubling(`target "t%d" { contexts = { a = "target:t%d", b = "target:t%d" } }`) + doubling(`target "u%d" { contexts = { a = "target:u%d", b = "target:u%d" } }`) + "target \"t90\" { contexts = { a = \"target:u0\" } }\ntarget \"u90\" {}\ngroup \"default\" { targets = [\"t0\"] }",
	} {
		t.Run(name, func(t *testing.T) {
			d, err := load(t, nil, "docker-bake.hcl", hcl)
			if err == nil {
				_, err = d.Plan(Request{})
			}
			if err == nil || !strings.Contains(err.Error(), "allowed") && !strings.Contains(err.Error(), "more") && !strings.Contains(err.Error(), "too ") {
				t.Errorf("got the error %v, want one that names a limit", err)
			}
		})
	}
	for name, document := range map[string]string{
		"arrays":    `{"target": {"x": {"tags": ` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `}}}`,
		"templates": `{"target": {"x": {"tags": "` + strings.Repeat("${(", 2000) + `"}}}`,
		"numbers":   `{"target": {"x": {"args": {"A": 1e300000000}}}}`,
	} {
		t.Run("JSON/"+name, func(t *testing.T) {
			if _, err := load(t, nil, "docker-bake.json", document); err == nil {
				t.Error("got no error")
			}
		})
	}
}

// The evaluation ends with its context.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := Options{Files: []string{"-"}, Stdin: strings.NewReader(`variable "V" { default = upper("x") }`), Env: func(string) (string, bool) { return "", false }}
	if _, err := Load(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got the error %v, want that of the context", err)
	}
}

func TestAllow(t *testing.T) {
	dir := t.TempDir()
	d, err := load(t, nil, "docker-bake.hcl", fmt.Sprintf(`target "default" {
  context      = "sub"
  dockerfile   = %q
  contexts     = { up = "..", image = "docker-image://busybox" }
  output       = ["type=local,dest=out", "type=tar,dest=../out.tar"]
  entitlements = ["security.insecure", "device=gpu"]
  network      = "host"
}`, filepath.Join(dir, "Dockerfile")))
	if err != nil {
		t.Fatal(err)
	}
	p, err := d.Plan(Request{})
	if err != nil {
		t.Fatal(err)
	}
	wd := t.TempDir()
	missing := func(allow ...string) string {
		a, err := ParseAllow(allow)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Missing(p, wd, true); err != nil {
			_, flags, _ := strings.Cut(err.Error(), "add ")
			return flags
		}
		return ""
	}
	want := "--allow security.insecure --allow device=gpu --allow network.host --allow fs.read=" + dir + "/Dockerfile --allow fs.read=.. --allow fs.write=../out.tar"
	if got := missing(); got != want {
		t.Errorf("without --allow %q is missing, want %q", got, want)
	}
	if got := missing("security.insecure", "device", "network.host", "fs.read="+dir, "fs=.."); got != "" {
		t.Errorf("with all of it %q is missing", got)
	}
	if err := os.Symlink("/", filepath.Join(wd, "sub")); err != nil {
		t.Fatal(err)
	}
	if got := missing("security.insecure", "device", "network.host", "fs.read="+dir, "fs=.."); got != "--allow fs.read=sub" {
		t.Errorf("with a context that is a link %q is missing", got)
	}
	if _, err := ParseAllow([]string{"network"}); err == nil {
		t.Error("--allow network is no error")
	}
}

func FuzzLoad(f *testing.F) {
	for _, seed := range []string{
		`target "default" { tags = ["${V}:${upper(V)}"] }` + "\n" + `variable "V" { default = "x" }`,
		"target \"x\" {\n  name = \"x-${a}\"\n  matrix = { a = [1, 2] }\n  args = { for k, v in { a = 1 } : k => v if v > 0 }\n}",
		"function \"f\" {\n  params = [a]\n  variadic_params = b\n  result = length(b) > 0 ? a : b\n}\ntarget \"default\" { args = { A = f(1, 2...) } }",
		`{"target": {"default": {"inherits": ["${V}"], "args": {"A": 1.5, "//": null}}}, "variable": [{"V": {"type": "list(string)"}}]}`,
		"group \"default\" { targets = target.x.tags }\ntarget \"x\" { tags = [\"x\"] }",
		"services:\n  web:\n    build: {context: ., x-bake: {tags: [a]}}\n",
	} {
		f.Add(seed, "default.tags+=x")
	}
	f.Fuzz(func(t *testing.T, text, set string) {
		o := Options{
			Files: []string{"-"}, Stdin: strings.NewReader(text), Dir: t.TempDir(),
			Env: func(name string) (string, bool) { return "1", name == "V" || name == "V_JSON" },
		}
		d, err := Load(t.Context(), o)
		if err != nil {
			return
		}
		p, err := d.Plan(Request{Sets: []string{set}})
		if err != nil {
			p, err = d.Plan(Request{})
		}
		if err != nil {
			return
		}
		if _, err := json.Marshal(p); err != nil {
			t.Errorf("the plan cannot be printed: %v", err)
		}
	})
}
