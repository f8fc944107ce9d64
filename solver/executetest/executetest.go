// Package executetest is what every solver.Executor must keep to.
package executetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/solver/work"
)

// Machine is an Executor under test, with a Planner that knows its layers.
type Machine struct {
	solver.Planner
	solver.Executor
	// Session is that of both.
	Session *session.Session
	// Tree returns a root file system with its files.
	Tree func(ctx context.Context, r solver.Ref) (layer.Tree, error)

	t *testing.T
}

var (
	scratch = solver.Ref{}
	local   = solver.Ref{Local: &llb.Local{Name: "context"}}
)

// Test runs the whole contract. open returns a machine without layers, which ends with the test.
func Test(t *testing.T, open func(t *testing.T) *Machine) {
	for name, test := range map[string]func(*Machine){
		"actions": testActions, "owners": testOwners, "diff": testDiff, "merge": testMerge,
		"changed contexts": testChanges, "missing": testMissing,
	} {
		t.Run(name, func(t *testing.T) {
			m := open(t)
			m.t = t
			test(m)
		})
	}
}

// context makes the session's context one of these files, by name.
func (m *Machine) context(files map[string]string) (dir string) {
	m.t.Helper()
	dir, tmp := m.t.TempDir(), m.t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			m.t.Fatal(err)
		}
	}
	d, err := localdir.Open(m.t.Context(), dir, nil, filepath.Join(tmp, "id"), tmp)
	if err != nil {
		m.t.Fatal(err)
	}
	m.Session.Locals = session.Trees{"context": d}
	return dir
}

func (m *Machine) plan(op llb.Op, in ...solver.Ref) solver.Plan {
	m.t.Helper()
	p, err := m.Plan(m.t.Context(), op, llb.Meta{}, in)
	if err != nil {
		m.t.Fatal(err)
	}
	return p
}

// do plans and executes an op. Its work goes through its encoding, and is done twice: the second time there is nothing new.
func (m *Machine) do(op llb.Op, in ...solver.Ref) solver.Ref {
	m.t.Helper()
	p := m.plan(op, in...)
	if p.Done {
		return p.Outputs[0]
	}
	first, err := m.Execute(m.t.Context(), p.Work, solver.Job{Stdout: io.Discard, Stderr: io.Discard})
	if err != nil {
		m.t.Fatal(err)
	}
	data, err := work.Encode(p.Work)
	if err != nil {
		m.t.Fatal(err)
	}
	decoded, err := work.Decode(data)
	if err != nil {
		m.t.Fatal(err)
	}
	if !reflect.DeepEqual(decoded, p.Work) {
		m.t.Errorf("the work is encoded as %s\nand decoded as %+v\nwhich was      %+v", data, decoded, p.Work)
	}
	second, err := m.Execute(m.t.Context(), decoded, solver.Job{Stdout: io.Discard, Stderr: io.Discard})
	if err != nil || !reflect.DeepEqual(first, second) {
		m.t.Errorf("decoded work makes %+v, %v, and made %+v", second, err, first)
	}
	var root solver.Ref
	if base := llb.Bases(op)[0]; base != llb.NoBase {
		root = in[base]
	}
	for _, l := range first {
		if err := m.Missing(m.t.Context(), l.Layer); err != nil {
			m.t.Errorf("a layer that was made: %v", err)
		}
		root = root.Push(l.Layer)
	}
	return root
}

// tree returns a root's files as text: "dir/", "file=content owner", "link->target", each in a word.
func (m *Machine) tree(r solver.Ref) string {
	m.t.Helper()
	tree, err := m.Tree(m.t.Context(), r)
	if err != nil {
		m.t.Fatal(err)
	}
	var words []string
	var list func(dir string)
	list = func(dir string) {
		entries, err := tree.List(dir)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, e := range entries {
			switch e.Type {
			case layer.Dir:
				words = append(words, e.Path+"/")
				list(e.Path)
			case layer.Symlink:
				words = append(words, e.Path+"->"+e.Link)
			default:
				f, err := tree.Open(&e)
				if err != nil {
					m.t.Fatal(err)
				}
				data, err := io.ReadAll(f)
				if err := errors.Join(err, f.Close()); err != nil {
					m.t.Fatal(err)
				}
				words = append(words, e.Path+"="+string(data))
			}
		}
	}
	list("")
	return strings.Join(words, " ")
}

func (m *Machine) want(r solver.Ref, want string) {
	m.t.Helper()
	if got := m.tree(r); got != want {
		m.t.Errorf("the root holds\n%s\nwant\n%s", got, want)
	}
}

// file is an action that makes a file.
func file(path, text string) llb.Action {
	return llb.Action{Mkfile: &llb.Mkfile{Path: path, Content: []byte(text)}}
}

func filesOp(actions ...llb.Action) llb.Op { return llb.File{Actions: actions} }

func copyOp(c llb.Copy) llb.Op { return llb.File{Actions: []llb.Action{{Copy: &c}}} }

func testActions(m *Machine) {
	m.context(map[string]string{"c/x": "X"})
	root := m.do(filesOp(file("/a/1", "one"), file("/a/2", "two"), llb.Action{Symlink: &llb.Symlink{Path: "/l", Target: "a"}}), scratch)
	m.want(root, "a/ a/1=one a/2=two l->a")
	root = m.do(filesOp(
		llb.Action{Mkdir: &llb.Mkdir{Path: "/l/new"}},
		llb.Action{Copy: &llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/c"}}, Dest: "/l/new/"}},
		llb.Action{Remove: &llb.Remove{Path: "/l/?", AllowWildcard: true}},
		file("/a/3", "three"),
		llb.Action{Remove: &llb.Remove{Path: "/a/new/x"}},
	), root, local)
	m.want(root, "a/ a/3=three a/new/ l->a")
	root = m.do(filesOp(llb.Action{Remove: &llb.Remove{Path: "/l"}}, file("/l/in", "a directory now")), root)
	m.want(root, "a/ a/3=three a/new/ l/ l/in=a directory now")
	root = m.do(filesOp(llb.Action{Remove: &llb.Remove{Path: "/a"}}, file("/a/4", "four")), root)
	m.want(root, "a/ a/4=four l/ l/in=a directory now")
	if root.Depth() != 4 {
		m.t.Errorf("four ops made %d layers", root.Depth())
	}
}

// Names of owners are looked up in the files of the root that is changed.
func testOwners(m *Machine) {
	m.context(map[string]string{"f": "text"})
	var warnings []string
	m.Session.Warn = func(text string) { warnings = append(warnings, text) }
	chown := func(who string) llb.Op {
		return copyOp(llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/f"}}, Dest: "/f", Attributes: llb.Attributes{Chown: who}})
	}
	root := m.do(filesOp(file("/etc/passwd", "app:x:1234:5678::/:\n"), file("/etc/group", "staff:x:50:\n")), scratch)
	for who, want := range map[string]string{"app": "1234:5678", "app:staff": "1234:50", "7:staff": "7:50", "8": "8:8", "nobody": "0:0"} {
		tree, err := m.Tree(m.t.Context(), m.do(chown(who), root, local))
		if err != nil {
			m.t.Fatal(err)
		}
		e, _, err := tree.Lookup("f")
		if got := fmt.Sprintf("%d:%d", e.UID, e.GID); err != nil || got != want {
			m.t.Errorf("--chown=%s gives the file to %s, %v, want %s", who, got, err, want)
		}
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], "--chown=nobody") {
		m.t.Errorf("the warnings are %q", warnings)
	}
	p := m.plan(chown("app"), scratch, local)
	if _, err := m.Execute(m.t.Context(), p.Work, solver.Job{}); err == nil || !strings.Contains(err.Error(), "--chown=app") {
		m.t.Errorf("a name in an empty root: %v", err)
	}
}

func testDiff(m *Machine) {
	base := m.do(filesOp(
		file("/keep", "k"), file("/d/gone", "g"), file("/d/changed", "c"), file("/f/x", "x"), file("/e", "e")), scratch)
	// The same but for what differs, made by other layers.
	other := m.do(filesOp(
		file("/keep", "k"), file("/d/changed", "CHANGED"), file("/f", "now a file"), file("/e/in", "now a directory")), scratch)
	diff := m.do(llb.Diff{}, base, other)
	if diff.Depth() != 1 {
		m.t.Errorf("the difference has %d layers", diff.Depth())
	}
	merged := m.do(llb.Merge{}, base, diff)
	m.want(merged, m.tree(other))
	// Over another root only what is in the difference goes.
	third := m.do(filesOp(file("/d/gone", "g"), file("/d/own", "own"), file("/z", "z")), scratch)
	m.want(m.do(llb.Merge{}, third, diff), "d/ d/changed=CHANGED d/own=own e/ e/in=now a directory f=now a file z=z")
	again := m.do(filesOp(file("/x", "x"), file("/y", "y")), scratch)
	again = m.do(filesOp(llb.Action{Remove: &llb.Remove{Path: "/y"}}), again)
	if same := m.do(llb.Diff{}, m.do(filesOp(file("/x", "x")), scratch), again); same.Depth() != 0 {
		m.t.Errorf("roots that are the same differ by %+v", same)
	}
}

// A directory that was made anew hides what its own root had in it, and nothing of what is merged below it.
func testMerge(m *Machine) {
	lower := m.do(filesOp(file("/d/old", "old"), file("/d/both", "of the lower")), scratch)
	upper := m.do(filesOp(llb.Action{Remove: &llb.Remove{Path: "/d"}}, file("/d/new", "new")), lower)
	m.want(upper, "d/ d/new=new")
	mine := m.do(filesOp(file("/d/mine", "mine"), file("/d/both", "both")), scratch)
	m.want(m.do(llb.Merge{}, mine, upper), "d/ d/mine=mine d/new=new")
	m.want(m.do(llb.Merge{}, scratch, mine, upper), "d/ d/mine=mine d/new=new")
	m.want(m.do(llb.Merge{}, mine, m.do(llb.Diff{}, lower, upper)), "d/ d/mine=mine d/new=new")
	m.want(m.do(llb.Merge{}, scratch, lower, mine), "d/ d/both=both d/mine=mine d/old=old")
}

// What is written to a context after it was planned is never recorded as what was planned.
func testChanges(m *Machine) {
	dir := m.context(map[string]string{"a": "before", "b": "b"})
	for _, paths := range [][]string{{"/"}, {"/a", "/b"}} {
		var sources []llb.CopySource
		for _, p := range paths {
			sources = append(sources, llb.CopySource{Input: 1, Path: p})
		}
		p := m.plan(copyOp(llb.Copy{Sources: sources, Dest: "/to/"}), scratch, local)
		if err := os.WriteFile(filepath.Join(dir, "a"), []byte("after!"), 0o644); err != nil {
			m.t.Fatal(err)
		}
		if made, err := m.Execute(m.t.Context(), p.Work, solver.Job{}); err == nil {
			m.t.Errorf("%q: %+v was made of a file that changed", paths, made)
		}
		dir = m.context(map[string]string{"a": "before", "b": "b"})
	}
}

func testMissing(m *Machine) {
	gone := solver.Layer{ID: strings.Repeat("0", 64), Content: solver.Content{1}}
	if err := m.Missing(m.t.Context(), gone); !errors.Is(err, fs.ErrNotExist) {
		m.t.Errorf("Missing of a layer that was never made: %v", err)
	}
	ctx, cancel := context.WithCancelCause(m.t.Context())
	stopped := errors.New("stopped")
	m.context(map[string]string{"a": "a"})
	p := m.plan(copyOp(llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/"}}, Dest: "/"}), scratch, local)
	cancel(stopped)
	if _, err := m.Execute(ctx, p.Work, solver.Job{}); !errors.Is(err, stopped) {
		m.t.Errorf("Execute with a context that has ended: %v", err)
	}
}
