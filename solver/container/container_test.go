package container

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/internal/steptest"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/solver/work"
)

// machine has a root file system with a shell, in which processes run.
type machine struct {
	*steptest.Machine
	root solver.Ref
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := steptest.New(t, &session.Session{Secrets: steptest.Secrets{"s": "secret"}})
	return &machine{m, m.Make(steptest.Shell(t))}
}

// Processes in a container share what it has, and nothing of what they write is kept.
func TestContainer(t *testing.T) {
	r := newMachine(t)
	op := llb.Exec{Network: llb.NetworkNone, Hostname: "there", Mounts: []llb.Mount{
		{Type: llb.MountTmpfs, Target: "/mounted"}, {Type: llb.MountSecret, ID: "none", Target: "/none"},
		{Type: llb.MountBind, Target: "/bound", Input: 1, Source: "/"}, {Type: llb.MountSecret, ID: "s", Target: "/s", Mode: 0o400},
	}}
	bound := r.Files("0644", map[string]string{"/f": "bound"})
	before, err := r.Store.IDs()
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(t.Context(), r.Job, work.Exec{Op: op, In: []solver.Ref{r.root, bound}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.AddFile("/run/config/file", []byte("added")); err != nil {
		t.Fatal(err)
	}
	start := func(ctx context.Context, script string, change ...func(*Process)) (out *bytes.Buffer, wait func() (sandbox.Status, error)) {
		out = &bytes.Buffer{}
		p := Process{Args: []string{"/bin/sh", "-c", script}, Stdio: sandbox.Stdio{Stdout: out, Stderr: out}}
		for _, f := range change {
			f(&p)
		}
		wait, err := c.Start(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		return out, wait
	}
	want := func(script, text string, change ...func(*Process)) {
		t.Helper()
		out, wait := start(t.Context(), script, change...)
		if st, err := wait(); err != nil || out.String() != text {
			t.Errorf("%+v, %v, %q, want %q", st, err, out.String(), text)
		}
	}
	_, first := start(t.Context(), "echo from the first > /mounted/f; while :; do [ ! -e /stop ] || exit 3; done")
	want("until [ -s /mounted/f ]; do :; done; cat /mounted/f /bound/f /run/config/file; echo $HOSTNAME; echo x > /bound/g",
		"from the first\nboundaddedthere\n")
	want("cat /s; echo $A $B", "secretsecret\n", func(p *Process) {
		p.Secrets = []Secret{{ID: "s", Variable: "A"}, {ID: "none", Variable: "B"}}
	})
	if c.Mounted(1) != nil {
		t.Error("a secret that does not exist is mounted")
	}
	for i, name := range map[int]string{0: "f", 2: "g", 3: ""} {
		if f, err := rootfs.At(c.Mounted(i)).OpenFile(name, unix.O_PATH, 0); (err == nil) != (name != "") {
			t.Errorf("mount %d: %v, %v", i, f, err)
		}
	}
	for _, p := range []Process{{Args: []string{"x"}, Security: llb.SecurityInsecure},
		{Args: []string{"x"}, Secrets: []Secret{{ID: "none", Variable: "A", Required: true}}},
		{Args: []string{"x"}, User: "nobody"}} {
		wait, err := c.Start(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		_, err = wait()
		if p.Security != "" && !errors.As(err, new(*NotAllowedError)) || err == nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, wait := start(ctx, "while :; do :; done")
	cancel()
	if _, err := wait(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	want("> /stop; while :; do :; done", "")
	if st, err := first(); st.ExitCode != 3 || err != nil {
		t.Errorf("%+v, %v", st, err)
	}
	_, wait = start(t.Context(), "")
	if _, err := wait(); !errors.Is(err, sandbox.ErrEnded) {
		t.Error(err)
	}
	if err := c.Close(); err == nil {
		t.Error("nothing has failed")
	}
	if _, err := c.Start(t.Context(), Process{Args: []string{"x"}}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	after, err := r.Store.IDs()
	if err != nil || len(after) != len(before) {
		t.Errorf("the layers are %v, %v", after, err)
	}
}

// A container can be closed at any time, and then nothing of it runs.
func TestContainerCloses(t *testing.T) {
	r := newMachine(t)
	for range 5 {
		c, err := New(t.Context(), r.Job, work.Exec{Op: llb.Exec{Network: llb.NetworkNone, ReadOnly: true}, In: []solver.Ref{r.root}})
		if err != nil {
			t.Fatal(err)
		}
		var waits []func() (sandbox.Status, error)
		for range 4 {
			wait, err := c.Start(t.Context(), Process{Args: []string{"/bin/sh", "-c", "while :; do :; done"},
				Stdio: sandbox.Stdio{Stdout: io.Discard}})
			if err != nil {
				t.Fatal(err)
			}
			waits = append(waits, wait)
		}
		if err := c.Close(); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		for _, wait := range waits {
			if st, err := wait(); !errors.Is(err, ErrClosed) && !errors.Is(err, sandbox.ErrEnded) && st.ExitCode != 137 {
				t.Errorf("%+v, %v", st, err)
			}
		}
		// What fails before there is a first process is told to those after it.
		c, err = New(t.Context(), r.Job, work.Exec{Op: llb.Exec{Network: llb.NetworkHost}, In: []solver.Ref{r.root}})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []func(error) bool{func(err error) bool { return errors.As(err, new(*NotAllowedError)) },
			func(err error) bool { return err != nil }} {
			wait, err := c.Start(t.Context(), Process{Args: []string{"x"}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := wait(); !want(err) {
				t.Error(err)
			}
		}
		if err := c.Close(); !errors.As(err, new(*NotAllowedError)) {
			t.Error(err)
		}
	}
}
