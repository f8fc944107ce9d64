// Package steptest has what tests that execute steps share: a machine with a store of its own, and root file systems for it.
package steptest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/plan"
	"github.com/kilnbuild/kiln/solver/session"
)

// Machine plans and executes steps. Its store, which has no layers at first, ends with the test.
type Machine struct {
	*execute.Job
	*plan.Planner
	Store *snapshot.Store

	t *testing.T
}

// New returns a machine for the steps of a session.
func New(t *testing.T, s *session.Session) *Machine {
	t.Helper()
	root := t.TempDir()
	tmp := filepath.Join(root, "tmp")
	if err := errors.Join(os.Mkdir(tmp, 0o700), os.Mkdir(filepath.Join(root, "locks"), 0o700)); err != nil {
		t.Fatal(err)
	}
	images, err := cas.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	store, err := snapshot.Open(snapshot.Config{Root: root, Tmp: tmp, Blobs: blob.Store{CAS: images}})
	if err != nil {
		t.Fatal(err)
	}
	x, layers := execute.New(execute.Config{Root: root, Tmp: tmp}), store.Job()
	j := x.Job(s, execute.Options{Snapshots: layers})
	t.Cleanup(func() {
		if err := errors.Join(j.Close(), x.Close(context.Background()), layers.Close(), store.Close(), images.Release()); err != nil {
			t.Error(err)
		}
	})
	return &Machine{j, &plan.Planner{Layers: j, Sources: j, Session: s, Tmp: tmp}, store, t}
}

// Step plans an op, without executing it.
func (m *Machine) Step(op llb.Op, in ...solver.Ref) solver.Plan {
	m.t.Helper()
	p, err := m.Plan(m.t.Context(), op, llb.Meta{}, in)
	if err != nil {
		m.t.Fatal(err)
	}
	return p
}

// Make returns a root file system of one layer, which is what actions make of an empty one.
func (m *Machine) Make(actions ...llb.Action) solver.Ref {
	m.t.Helper()
	made, err := m.Execute(m.t.Context(), m.Step(llb.File{Actions: actions}, solver.Ref{}).Work, solver.Job{})
	if err != nil {
		m.t.Fatal(err)
	}
	return solver.NewRef(made[0].Layer)
}

// Files returns a root file system of files by their paths, all with one mode.
func (m *Machine) Files(mode string, files map[string]string) solver.Ref {
	m.t.Helper()
	var actions []llb.Action
	for path, text := range files {
		actions = append(actions, File(path, text, mode))
	}
	return m.Make(actions...)
}

// File returns the action that makes a file.
func File(path, text, mode string) llb.Action {
	return llb.Action{Mkfile: &llb.Mkfile{Path: path, Content: []byte(text), Attributes: llb.Attributes{Chmod: mode}}}
}

// Root fails a test that has steps with processes where it does not run as root.
func Root(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test runs processes of steps as root: run it as root")
	}
}

// Shell returns the action that makes /bin/sh of the machine's static busybox, for steps with processes: see Root.
func Shell(t *testing.T) llb.Action {
	t.Helper()
	Root(t)
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("%v: install busybox-static", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return File("/bin/sh", string(program), "0755")
}

// Secrets are secrets of a session, by their ids.
type Secrets map[string]string

// Secret implements session.Secrets.
func (s Secrets) Secret(_ context.Context, id string) ([]byte, bool, error) {
	v, ok := s[id]
	return []byte(v), ok, nil
}
