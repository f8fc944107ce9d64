package execute_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/internal/steptest"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/executetest"
	"github.com/kilnbuild/kiln/solver/plan"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/solver/work"
	digest "github.com/opencontainers/go-digest"
)

func TestContract(t *testing.T) {
	executetest.Test(t, func(t *testing.T) *executetest.Machine {
		m := newMachine(t)
		tree := func(ctx context.Context, r solver.Ref) (layer.Tree, error) { return m.Tree(ctx, r) }
		return &executetest.Machine{Planner: m.Planner, Executor: m.Job, Session: m.Job.Session, Tree: tree}
	})
}

// machine plans and executes steps over a build context.
type machine struct {
	*steptest.Machine
	t   *testing.T
	dir string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	return &machine{steptest.New(t, &session.Session{}), t, t.TempDir()}
}

// look forgets what is known of the context, as a new build does.
func (m *machine) look() {
	m.t.Helper()
	d, err := localdir.Open(context.Background(), m.dir, nil, filepath.Join(m.Root, "context", "id"), m.Job.Tmp)
	if err != nil {
		m.t.Fatal(err)
	}
	m.Job.Locals = session.Trees{"context": d}
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	name = filepath.Join(m.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		m.t.Fatal(err)
	}
}

var (
	scratch = solver.Ref{}
	local   = solver.Ref{Local: &llb.Local{Name: "context"}}
)

func copyOp(c llb.Copy) llb.Op { return llb.File{Actions: []llb.Action{{Copy: &c}}} }

func archive(t *testing.T, name, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))})
	if err == nil {
		_, err = w.Write([]byte(text))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// want checks the names in the top directory of a root.
func (m *machine) want(r solver.Ref, want string) {
	m.t.Helper()
	tree, err := m.Tree(m.t.Context(), r)
	if err != nil {
		m.t.Fatal(err)
	}
	list, err := tree.List("")
	if err != nil {
		m.t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != want {
		m.t.Errorf("the root holds %s, want %s", got, want)
	}
}

// What a process writes to a mount that is an output becomes a layer over what the mount showed; what it writes to another is thrown away.
func TestMountOutputs(t *testing.T) {
	m := newMachine(t)
	root := m.Make(steptest.Shell(t))
	shown := m.Files("0644", map[string]string{"/old": "old", "/gone": "gone"})
	op := llb.Exec{
		Args: []string{"/bin/sh", "-c", "echo -n new >/out/new; rm /out/gone; echo -n x >/thrown/away; echo -n kept >/kept"}, Cwd: "/", Network: llb.NetworkNone,
		Mounts: []llb.Mount{
			{Type: llb.MountBind, Target: "/thrown", Input: 1, Source: "/"},
			{Type: llb.MountBind, Target: "/out", Input: 1, Source: "/", Output: 1},
		},
	}
	p := m.Step(op, root, shown)
	made, err := m.Execute(t.Context(), p.Work, solver.Job{Stdout: io.Discard, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if len(made) != 2 || made[0].Output != 0 || made[1].Output != 1 {
		t.Fatalf("the step made %+v", made)
	}
	m.want(shown.Push(made[1].Layer), "new old")
	tree, err := m.Tree(t.Context(), root.Push(made[0].Layer))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{"kept": true, "thrown/away": false, "out/new": false} {
		if _, ok, err := tree.Lookup(path); err != nil || ok != want {
			t.Errorf("/%s is in the root: %v, %v", path, ok, err)
		}
	}
}

// A step can show its root read-only, end with another status than 0, and change a directory of a mount that becomes an output.
func TestRawExec(t *testing.T) {
	m := newMachine(t)
	root := m.Make(steptest.Shell(t))
	shown := m.Files("0644", map[string]string{"/dir/old": "old", "/beside": "beside"})
	run := func(script string, status ...int) ([]solver.Made, error) {
		op := llb.Exec{
			Args: []string{"/bin/sh", "-c", script}, Cwd: "/work", Network: llb.NetworkNone, ReadOnly: true, ExitStatus: status,
			Mounts: []llb.Mount{{Type: llb.MountBind, Target: "/out", Input: 1, Source: "/dir", Output: 1}},
		}
		return m.Execute(t.Context(), m.Step(op, root, shown).Work, solver.Job{Stdout: io.Discard, Stderr: io.Discard})
	}
	made, err := run("echo -n x 2>/dev/null >/new && exit 1; echo -n new >/out/new; exit 3", 0, 3)
	if err != nil {
		t.Fatal(err)
	}
	if len(made) != 2 || made[0].Content != (solver.Content{}) {
		t.Fatalf("the step made %+v", made)
	}
	tree, err := m.Tree(t.Context(), shown.Push(made[1].Layer))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"beside", "dir/old", "dir/new"} {
		if _, ok, err := tree.Lookup(path); err != nil || !ok {
			t.Errorf("/%s is not in the output: %v", path, err)
		}
	}
	for script, status := range map[string][]int{"exit 3": nil, "exit 0": {3}, "exit 4": {0, 3}} {
		_, err := run(script, status...)
		if _, ok := errors.AsType[*execute.ExitError](err); !ok {
			t.Errorf("%q succeeds with the statuses %v: %v", script, status, err)
		}
	}
}

// images has one image of one layer, which is opened as often as it says.
type images struct {
	blob   []byte
	diffID string
	opened int
}

func (i *images) Layers(context.Context, llb.Image) ([]execute.ImageLayer, error) {
	return []execute.ImageLayer{{DiffID: digest.Digest(i.diffID)}}, nil
}

func (i *images) Architecture(llb.Image) string { return runtime.GOARCH }

func (i *images) Open(context.Context, llb.Image, execute.ImageLayer) (io.ReadCloser, error) {
	i.opened++
	return io.NopCloser(bytes.NewReader(i.blob)), nil
}

// Planning a copy from an image makes no layer of it: the step may well be cached. If its files are expected to be needed, the blob
// is only read once.
func TestPlanningUnpacksNothing(t *testing.T) {
	for _, expected := range []bool{false, true} {
		m := newMachine(t)
		blob := []byte(archive(t, "file", "of the image"))
		img := &images{blob: blob, diffID: digest.FromBytes(blob).String()}
		m.Job.Images = img
		image := m.Step(llb.Image{}).Outputs[0]
		m.Expect(image, func() solver.Demand { return solver.Demand{Files: expected} })
		p := m.Step(copyOp(llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/file"}}, Dest: "/"}), scratch, image)
		ids, err := m.Store.IDs()
		if err != nil || (len(ids) > 0) != expected {
			t.Errorf("files expected: %v: planning made the layers %v, %v", expected, ids, err)
		}
		made, err := m.Execute(t.Context(), p.Work, solver.Job{})
		if err != nil {
			t.Fatal(err)
		}
		m.want(solver.NewRef(made[0].Layer), "file")
		if want := map[bool]int{false: 2, true: 1}[expected]; img.opened != want {
			t.Errorf("files expected: %v: the blob was read %d times", expected, img.opened)
		}
	}
}

// TestContextChangesWhileCopied: what is written to the context between the look at it and the copy is never recorded
// under the key of what was there before.
func TestContextChangesWhileCopied(t *testing.T) {
	for name, c := range map[string]struct{ file, before, after string }{
		"a file":                   {"plain", "before", "after!"},
		"an archive":               {"tar", archive(t, "in", "before"), archive(t, "in", "after!")},
		"behind an archive's end":  {"tar", archive(t, "in", "x") + "before", archive(t, "in", "x") + "after!"},
		"a file beside an archive": {"beside", "before", "after!"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newMachine(t)
			p.write("plain", "plain")
			p.write("beside", "beside")
			p.write("tar", archive(t, "in", "x"))
			p.write(c.file, c.before)
			p.look()
			files := llb.Copy{Dest: "/"}
			for _, name := range []string{"plain", "beside", "tar"} {
				if name == "plain" || c.file != "plain" {
					files.Sources = append(files.Sources, llb.CopySource{Input: 1, Path: "/" + name, Unpack: true})
				}
			}
			op := copyOp(files)
			step, err := p.Plan(t.Context(), op, llb.Meta{}, []solver.Ref{scratch, local})
			if err != nil {
				t.Fatal(err)
			}
			p.write(c.file, c.after)
			if l, err := p.Execute(t.Context(), step.Work, solver.Job{}); err == nil {
				t.Errorf("Run = %+v, and the file is not what it was", l)
			}
			// And undisturbed it works.
			p.look()
			if step, err = p.Plan(t.Context(), op, llb.Meta{}, []solver.Ref{scratch, local}); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Execute(t.Context(), step.Work, solver.Job{}); err != nil {
				t.Errorf("Run = %v", err)
			}
		})
	}
}

// TestContextChangesWhilePacked: a file that changes before its bytes are in the layer's tar is an error that names it, and there is
// neither a layer nor a blob.
func TestContextChangesWhilePacked(t *testing.T) {
	for name, change := range map[string]func(p *machine){
		"other bytes": func(p *machine) { p.write("d/file", "after!") },
		"longer":      func(p *machine) { p.write("d/file", "before and after") },
		"shorter":     func(p *machine) { p.write("d/file", "b") },
		"gone":        func(p *machine) { os.Remove(filepath.Join(p.dir, "d/file")) },
	} {
		for _, sources := range [][]llb.CopySource{{{Input: 1, Path: "/"}}, {{Input: 1, Path: "/d"}, {Input: 1, Path: "/plain"}}} {
			t.Run(fmt.Sprint(name, len(sources)), func(t *testing.T) {
				p := newMachine(t)
				p.write("plain", "plain")
				p.write("d/file", "before")
				p.look()
				disturb := func() {}
				p.Job.Blob = &blob.Encoding{Compression: blob.Uncompressed}
				run := func() ([]solver.Made, error) {
					p.look()
					step, err := p.Plan(t.Context(), copyOp(llb.Copy{Sources: sources, Dest: "/x/"}), llb.Meta{}, []solver.Ref{scratch, local})
					if err != nil {
						t.Fatal(err)
					}
					disturb()
					return p.Execute(t.Context(), step.Work, solver.Job{Demand: []solver.Demand{{Blob: p.Job.Blob.String()}}})
				}
				blobs := func() int {
					names, err := os.ReadDir(filepath.Join(p.Root, "blobs/sha256"))
					if err != nil {
						t.Fatal(err)
					}
					return len(names)
				}
				disturb = func() { change(p) }
				_, err := run()
				if err == nil || blobs() > 0 || !strings.Contains(err.Error(), "file") {
					t.Errorf("Run = %v, and there are %d blobs", err, blobs())
				}
				if ids, err := p.Store.IDs(); err != nil || len(ids) > 0 {
					t.Errorf("the layers are %v, %v", ids, err)
				}
				disturb = func() {}
				p.write("d/file", "at rest")
				if l, err := run(); err != nil || blobs() != 1 || p.Missing(t.Context(), l[0].Layer) != nil {
					t.Errorf("undisturbed: Run = %+v, %v", l, err)
				}
			})
		}
	}
}

// TestFillEnds shows that what comes from elsewhere is read until the context ends.
func TestFillEnds(t *testing.T) {
	p := newMachine(t)
	if _, err := p.File(ctxtest.EndAfter(10), "file", io.LimitReader(zeros{}, 64<<20)); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("File: %v", err)
	}
}

// zeros are as many as are asked for.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Layers without entries take no part in a root: a thousand WORKDIRs of a directory that is there leave it as it is, and cost what is above
// them nothing.
func TestRootWithoutEmptyLayers(t *testing.T) {
	m := newMachine(t)
	files := m.Files("0644", map[string]string{"/a": "a"})
	made := files.Layers()[0]
	var root solver.Ref
	for i := range 2000 {
		if i == 1000 {
			root = root.Push(made)
		}
		root = root.Push(solver.Layer{ID: fmt.Sprintf("%064x", i)}) // of which the store knows nothing
	}
	ids, err := m.Realise(t.Context(), root)
	if err != nil || !slices.Equal(ids, []layer.ID{layer.ID(made.ID)}) {
		t.Errorf("the layers are %v, %v", ids, err)
	}
	if layers, err := m.View(t.Context(), root); err != nil || len(layers) != 1 || layers[0].ID != layer.ID(made.ID) {
		t.Errorf("the view has %d layers, %v", len(layers), err)
	}
	m.want(root, "a")
	// Merged onto another root it keeps all its layers.
	merged := m.Step(llb.Merge{}, m.Files("0644", map[string]string{"/b": "b"}), root)
	if !merged.Done || merged.Outputs[0].Depth() != 2002 {
		t.Fatalf("merging plans %+v", merged)
	}
	m.want(merged.Outputs[0], "a b")
}

// runner is a machine with a root file system in which scripts run.
type runner struct {
	*machine
	root solver.Ref
}

func newRunner(t *testing.T) *runner {
	t.Helper()
	m := newMachine(t)
	return &runner{m, m.Make(steptest.Shell(t))}
}

// sh runs a script with cache mounts, which are "id:sharing" at /1, /2 and so on, and returns what it prints.
func (r *runner) sh(script string, caches ...string) (string, error) {
	op := llb.Exec{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Network: llb.NetworkNone}
	for i, c := range caches {
		id, sharing, _ := strings.Cut(c, ":")
		op.Mounts = append(op.Mounts, llb.Mount{Type: llb.MountCache, Target: fmt.Sprintf("/%d", i+1), CacheID: id, Sharing: llb.Sharing(sharing), Mode: 0o755})
	}
	p, err := r.Plan(r.t.Context(), op, llb.Meta{}, []solver.Ref{r.root})
	if err != nil {
		return "", err
	}
	// A step that waits for itself does so until the end of the guard.
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	_, err = r.Execute(ctx, p.Work, solver.Job{Stdout: &out, Stderr: &out})
	return out.String(), err
}

// Several mounts of one cache in one step are one directory, which is locked once, however it is shared.
func TestCacheTwice(t *testing.T) {
	r := newRunner(t)
	for _, sharing := range [][2]string{{"locked", "locked"}, {"private", "private"}, {"shared", "shared"}, {"shared", "locked"}, {"locked", "shared"}, {"private", "locked"}} {
		id := sharing[0] + sharing[1]
		if out, err := r.sh("echo -n x > /1/f; cat /2/f", id+":"+sharing[0], id+":"+sharing[1]); err != nil || out != "x" {
			t.Errorf("%v: %q, %v", sharing, out, err)
		}
	}
}

// Steps that lock the same caches in different orders do not wait for each other.
func TestCachesInAnyOrder(t *testing.T) {
	r := newRunner(t)
	var all sync.WaitGroup
	for _, caches := range [][]string{{"a:locked", "b:locked"}, {"b:locked", "a:locked"}, {"b:locked", "c:shared", "a:locked"}, {"a:shared", "c:locked"}} {
		all.Go(func() {
			for range 20 {
				if out, err := r.sh(":", caches...); err != nil {
					t.Errorf("%v: %q, %v", caches, out, err)
					return
				}
			}
		})
	}
	all.Wait()
}

// With FreshCaches a cache is empty when the first step of the build uses it, and no step later.
func TestFreshCaches(t *testing.T) {
	r := newRunner(t)
	for _, c := range []string{"a:shared", "b:locked", "c:private"} {
		if out, err := r.sh("echo -n old > /1/f", c); err != nil {
			t.Fatal(out, err)
		}
	}
	r.Job.FreshCaches = true
	for _, c := range []string{"a:shared", "b:locked", "c:private"} {
		if out, err := r.sh("cat /1/f; echo -n new > /1/f", c); err == nil && strings.HasPrefix(out, "old") {
			t.Errorf("%s: %q, %v", c, out, err)
		}
		if out, err := r.sh("cat /1/f", c); err != nil || out != "new" {
			t.Errorf("%s in the next step: %q, %v", c, out, err)
		}
	}
}

// One Executor serves several jobs at once, each with the secrets of its own session, and goes on when one of them is closed.
func TestJobs(t *testing.T) {
	r := newRunner(t)
	run := func(j *execute.Job, want string) {
		op := llb.Exec{Args: []string{"/bin/sh", "-c", "cat /s"}, Cwd: "/", Network: llb.NetworkNone,
			Mounts: []llb.Mount{{Type: llb.MountSecret, ID: "s", Target: "/s", Required: true, Mode: 0o400}}}
		p, err := (&plan.Planner{Layers: j, Sources: j, Session: j.Session, Tmp: j.Tmp}).Plan(t.Context(), op, llb.Meta{}, []solver.Ref{r.root})
		if err != nil {
			t.Error(err)
			return
		}
		var out bytes.Buffer
		if _, err := j.Execute(t.Context(), p.Work, solver.Job{Stdout: &out, Stderr: &out}); err != nil || out.String() != want {
			t.Errorf("%q, %v, want %q", out.String(), err, want)
		}
	}
	var all sync.WaitGroup
	for n := range 4 {
		all.Go(func() {
			value := fmt.Sprint("secret ", n)
			layers := r.Store.Job()
			j := r.Executor.Job(&session.Session{Secrets: steptest.Secrets{"s": value}}, execute.Options{Snapshots: layers})
			for range 5 {
				run(j, value)
			}
			if err := errors.Join(j.Close(), layers.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if out, err := r.sh("echo on"); err != nil || out != "on\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// What is prepared for a step can be used for another program, and nothing of it is kept unless it is committed.
func TestPrepared(t *testing.T) {
	r := newRunner(t)
	op := llb.Exec{Args: []string{"/bin/sh", "-c", "exit 1"}, Env: []string{"A=step"}, Cwd: "/", Network: llb.NetworkNone,
		Mounts: []llb.Mount{{Type: llb.MountTmpfs, Target: "/mounted"}}}
	p, err := r.Job.Prepare(t.Context(), r.Step(op, r.root).Work.(work.Exec))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var out bytes.Buffer
	p.Spec.Process.Args = []string{"/bin/sh", "-c", "echo $A; echo x > /mounted/f && cat /mounted/f; echo > /written"}
	p.Spec.Stdio.Stdout = &out
	if err := p.Run(t.Context()); err != nil || out.String() != "step\nx\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	ids, err := r.Store.IDs()
	if err != nil || len(ids) != 1 {
		t.Errorf("the layers are %v, %v", ids, err)
	}
}

// What a step that failed has written to its root and its mounts is there until the job ends, for whoever asks for it.
func TestLeft(t *testing.T) {
	r := newRunner(t)
	r.Job.KeepLeft = true
	shown := r.Files("0644", map[string]string{"/old": "old"})
	op := llb.Exec{
		Args: []string{"/bin/sh", "-c", "echo x > /kept; echo x > /out/new; echo x > /thrown/away; exit 3"}, Cwd: "/", Network: llb.NetworkNone,
		Mounts: []llb.Mount{
			{Type: llb.MountBind, Target: "/thrown", Input: 1, Source: "/"}, {Type: llb.MountBind, Target: "/out", Input: 1, Source: "/", Output: 1},
			{Type: llb.MountBind, Target: "/shown", Input: 1, Source: "/", ReadOnly: true}, {Type: llb.MountTmpfs, Target: "/tmp"},
		},
	}
	_, err := r.Execute(t.Context(), r.Step(op, r.root, shown).Work, solver.Job{Stdout: io.Discard, Stderr: io.Discard})
	l := r.Job.Left(fmt.Errorf("build: %w", err))
	if l == nil || len(l.Mounts) != 4 {
		t.Fatalf("%+v is left of %v", l, err)
	}
	for target, want := range map[string]string{"/": "bin dev kept proc sys", "/thrown": "away old", "/out": "new old", "/shown": "old"} {
		r.want(l.Mounts[target].After, want)
	}
	r.want(l.Mounts["/out"].Before, "old")
	if r.Job.Left(errors.New("another")) != nil {
		t.Error("something is left of another step")
	}
	// A step that succeeds keeps its outputs alone.
	op.Args[2] = "echo x > /out/new; echo x > /thrown/away"
	made, err := r.Execute(t.Context(), r.Step(op, r.root, shown).Work, solver.Job{Stdout: io.Discard, Stderr: io.Discard})
	if err != nil || len(made) != 2 {
		t.Errorf("%+v, %v", made, err)
	}
}
