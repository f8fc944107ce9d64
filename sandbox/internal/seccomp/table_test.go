package seccomp

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write table.go")

// policyModule is where Docker publishes its policy, and the version that table.go was made from.
const policyModule = "github.com/moby/profiles/seccomp@v0.3.0"

// statement is an element of "syscalls" in default.json.
type statement struct {
	Names              []string
	Action             string
	ErrnoRet           uint32
	Args               []argument
	Includes, Excludes struct {
		Caps, Arches []string
	}
}

type argument struct {
	Index           uint32
	Value, ValueTwo uint64
	Op              string
}

// policy reads Docker's policy from the module cache.
func policy(t testing.TB) []statement {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", policyModule)
	cmd.Dir = t.TempDir() // it is no dependency of this module
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(module.Dir, "default.json"))
	if err != nil {
		t.Fatal(err)
	}
	var profile struct {
		DefaultAction   string
		DefaultErrnoRet uint32
		Syscalls        []statement
	}
	if err := json.Unmarshal(text, &profile); err != nil {
		t.Fatal(err)
	}
	if profile.DefaultAction != "SCMP_ACT_ERRNO" || profile.DefaultErrnoRet != 1 || len(profile.Syscalls) == 0 {
		t.Fatalf("not the policy: %+v", profile)
	}
	return profile.Syscalls
}

// capabilities are those that Docker gives a container by default.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// numbers reads the call numbers of a GOARCH from golang.org/x/sys.
func numbers(t testing.TB, goarch string) map[string]uint32 {
	t.Helper()
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "golang.org/x/sys/unix").Output()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(strings.TrimSpace(string(dir)), "zsysnum_linux_"+goarch+".go")
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]uint32{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		nr, err := strconv.ParseUint(spec.Values[0].(*ast.BasicLit).Value, 0, 32)
		if err != nil {
			t.Fatal(err)
		}
		m[strings.ToLower(strings.TrimPrefix(spec.Names[0].Name, "SYS_"))] = uint32(nr)
		return false
	})
	switch goarch {
	case "arm": // arch/arm/include/uapi/asm/unistd.h, the private calls
		delete(m, "syscall_mask") // no call
		m["breakpoint"], m["cacheflush"], m["set_tls"] = 0xf0001, 0xf0002, 0xf0005
	case "arm64":
		delete(m, "arch_specific_syscall") // the first of a range
		m["sync_file_range2"] = m["sync_file_range"]
	}
	if len(m) < 300 {
		t.Fatalf("%d calls in %s", len(m), name)
	}
	return m
}

// statements are the parts of Docker's policy that hold for the capabilities and a GOARCH, on any kernel that kiln runs on.
func statements(t testing.TB, goarch string) []statement {
	has := func(list []string) bool {
		return slices.ContainsFunc(list, func(c string) bool { return slices.Contains(capabilities, c) })
	}
	return slices.DeleteFunc(policy(t), func(s statement) bool {
		in, ex := s.Includes, s.Excludes
		return len(in.Caps) > 0 && !has(in.Caps) || len(in.Arches) > 0 && !slices.Contains(in.Arches, goarch) ||
			has(ex.Caps) || slices.Contains(ex.Arches, goarch)
	})
}

// generate is the text of table.go.
func generate(t *testing.T) []byte {
	acts := map[string]action{}
	var names []string
	conditions := map[string][]string{}
	rule := func(name string) action {
		i := slices.Index(names, name)
		if i < 0 {
			i = len(names)
			names = append(names, name)
		}
		return withRule + action(i)
	}
	for _, name := range slices.Sorted(maps.Keys(extra)) {
		rule(name)
	}
	tables := map[string][]call{}
	for _, goarch := range []string{"amd64", "386", "arm64", "arm"} {
		// Docker evaluates its policy once, for the machine, and applies it to the ABIs below it.
		machine := map[string]string{"386": "amd64", "arm": "arm64"}[goarch]
		if machine == "" {
			machine = goarch
		}
		clear(acts)
		clear(conditions)
		for _, s := range statements(t, machine) {
			for _, name := range s.Names {
				switch {
				case s.Action == "SCMP_ACT_ERRNO" && s.ErrnoRet == 38 && len(s.Args) == 0:
					acts[name] = absent
				case s.Action == "SCMP_ACT_ALLOW" && len(s.Args) == 0 && len(extra[name]) == 0:
					acts[name] = allow
				case s.Action == "SCMP_ACT_ALLOW" && len(s.Args) < 2:
					acts[name] = rule(name)
					for _, a := range s.Args {
						conditions[name] = append(conditions[name], conditionText(t, a))
					}
				default:
					t.Fatalf("no way to write down %+v", s)
				}
			}
		}
		if acts["socketpair"] != allow {
			t.Fatal("the policy has a rule for socketpair")
		}
		acts["socketpair"] = acts["socket"]
		known := numbers(t, goarch)
		var highest uint32
		for name := range acts {
			if nr := known[name]; nr < 0xf0000 {
				highest = max(highest, nr)
			}
		}
		for name, nr := range known {
			if goarch == "386" && name == "socketcall" {
				continue // Compile knows it
			}
			act, ok := acts[name]
			if !ok && nr <= highest { // a call that is newer than the policy is not refused but absent
				act = refuse
			}
			if act != absent {
				tables[goarch] = append(tables[goarch], call{nr, act})
			}
		}
		slices.SortFunc(tables[goarch], func(a, b call) int { return int(a.nr) - int(b.nr) })
		tables[goarch] = slices.Compact(tables[goarch]) // some numbers have two names
		for i, c := range tables[goarch][1:] {
			if c.nr == tables[goarch][i].nr {
				t.Fatalf("%s: two actions for call %d", goarch, c.nr)
			}
		}
	}

	var b bytes.Buffer
	b.WriteString("// Code generated by go generate from github.com/moby/profiles and golang.org/x/sys; DO NOT EDIT.\n\npackage seccomp\n\n")
	b.WriteString("var rules = []rule{\n")
	for _, name := range names {
		fmt.Fprintf(&b, "{name: %q, anyOf: []condition{", name)
		for i, c := range conditions[name] {
			if i%3 == 0 {
				b.WriteString("\n")
			}
			b.WriteString(c + ", ")
		}
		if len(conditions[name]) > 0 {
			b.WriteString("\n")
		}
		b.WriteString("}},\n")
	}
	b.WriteString("}\n")
	for _, arch := range []string{"amd64", "386", "arm64", "arm"} {
		fmt.Fprintf(&b, "\nvar calls%s = []call{", strings.ToUpper(arch))
		for i, c := range tables[arch] {
			if i%8 == 0 {
				b.WriteString("\n")
			}
			fmt.Fprintf(&b, "{%d, %s}, ", c.nr, actionText(c.act))
		}
		b.WriteString("\n}\n")
	}
	text, err := format.Source(b.Bytes())
	if err != nil {
		t.Fatalf("%v\n%s", err, b.Bytes())
	}
	return text
}

func actionText(a action) string {
	if a > withRule {
		return fmt.Sprintf("withRule + %d", a-withRule)
	}
	return []string{"absent", "refuse", "allow", "notify", "withRule"}[a]
}

func conditionText(t *testing.T, a argument) string {
	if a.Value > 1<<32-1 || a.ValueTwo > 1<<32-1 {
		t.Fatalf("more than 32 bits: %+v", a)
	}
	switch a.Op {
	case "SCMP_CMP_EQ":
		return fmt.Sprintf("{arg: %d, op: equal, value: %#x}", a.Index, a.Value)
	case "SCMP_CMP_LT":
		return fmt.Sprintf("{arg: %d, op: less, value: %#x}", a.Index, a.Value)
	case "SCMP_CMP_MASKED_EQ":
		return fmt.Sprintf("{arg: %d, op: maskedEqual, value: %#x, mask: %#x}", a.Index, a.ValueTwo, a.Value)
	}
	t.Fatalf("no way to write down %+v", a)
	return ""
}

func TestTable(t *testing.T) {
	want := generate(t)
	if *update {
		if err := os.WriteFile("table.go", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile("table.go")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("table.go is not what go generate makes of the policy: %v", err)
	}
}
