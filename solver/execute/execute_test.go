package execute

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/plan"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/solver/work"
	digest "github.com/opencontainers/go-digest"
)

// machine plans and executes steps over a build context.
type machine struct {
	*Executor
	*plan.Planner
	t   *testing.T
	dir string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	root := t.TempDir()
	tmp := filepath.Join(root, "tmp")
	if err := errors.Join(os.Mkdir(tmp, 0o700), os.Mkdir(filepath.Join(root, "locks"), 0o700)); err != nil {
		t.Fatal(err)
	}
	store, err := snapshot.Open(root, tmp, userns.Namespace{})
	if err != nil {
		t.Fatal(err)
	}
	s := &session.Session{}
	x := New(Config{Snapshots: store, Root: root, Tmp: tmp}, s)
	t.Cleanup(func() { x.Close() })
	return &machine{x, &plan.Planner{Layers: x, Sources: x, Session: s, Tmp: tmp}, t, t.TempDir()}
}

// look forgets what is known of the context, as a new build does.
func (m *machine) look() {
	m.t.Helper()
	d, err := localdir.Open(context.Background(), m.dir, nil, filepath.Join(m.Root, "context", "id"), m.Config.Tmp)
	if err != nil {
		m.t.Fatal(err)
	}
	m.Executor.Local = map[string]layer.Tree{"context": d}
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
	local   = solver.Ref{Local: "context"}
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

func (m *machine) plan(op llb.Op, in ...solver.Ref) solver.Plan {
	m.t.Helper()
	p, err := m.Plan(m.t.Context(), op, llb.Meta{}, in)
	if err != nil {
		m.t.Fatal(err)
	}
	return p
}

// do plans and executes an op. Its work goes through its encoding, and is done twice: the second time there is nothing new.
func (m *machine) do(op llb.Op, in ...solver.Ref) solver.Ref {
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
func (m *machine) tree(r solver.Ref) string {
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

func (m *machine) want(r solver.Ref, want string) {
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

func TestFileActions(t *testing.T) {
	m := newMachine(t)
	m.write("c/x", "X")
	m.look()
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
		t.Errorf("four ops made %d layers", root.Depth())
	}
}

// Names of owners are looked up in the files of the root that is changed.
func TestOwners(t *testing.T) {
	m := newMachine(t)
	m.write("f", "text")
	m.look()
	var warnings []string
	m.Warn = func(text string) { warnings = append(warnings, text) }
	chown := func(who string) llb.Op {
		return copyOp(llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/f"}}, Dest: "/f", Attributes: llb.Attributes{Chown: who}})
	}
	root := m.do(filesOp(file("/etc/passwd", "app:x:1234:5678::/:\n"), file("/etc/group", "staff:x:50:\n")), scratch)
	for who, want := range map[string]string{"app": "1234:5678", "app:staff": "1234:50", "7:staff": "7:50", "8": "8:8", "nobody": "0:0"} {
		tree, err := m.Tree(t.Context(), m.do(chown(who), root, local))
		if err != nil {
			t.Fatal(err)
		}
		e, _, err := tree.Lookup("f")
		if got := fmt.Sprintf("%d:%d", e.UID, e.GID); err != nil || got != want {
			t.Errorf("--chown=%s gives the file to %s, %v, want %s", who, got, err, want)
		}
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], "--chown=nobody") {
		t.Errorf("the warnings are %q", warnings)
	}
	p := m.plan(chown("app"), scratch, local)
	if _, err := m.Execute(t.Context(), p.Work, solver.Job{}); err == nil || !strings.Contains(err.Error(), "--chown=app") {
		t.Errorf("a name in an empty root: %v", err)
	}
}

func TestDiff(t *testing.T) {
	m := newMachine(t)
	base := m.do(filesOp(file("/keep", "k"), file("/d/gone", "g"), file("/d/changed", "c"), file("/f/x", "x"), file("/e", "e")), scratch)
	// The same but for what differs, made by other layers.
	other := m.do(filesOp(file("/keep", "k"), file("/d/changed", "CHANGED"), file("/f", "now a file"), file("/e/in", "now a directory")), scratch)
	diff := m.do(llb.Diff{}, base, other)
	if diff.Depth() != 1 {
		t.Errorf("the difference has %d layers", diff.Depth())
	}
	merged := m.do(llb.Merge{}, base, diff)
	m.want(merged, m.tree(other))
	// Over another root only what is in the difference goes.
	third := m.do(filesOp(file("/d/gone", "g"), file("/d/own", "own"), file("/z", "z")), scratch)
	m.want(m.do(llb.Merge{}, third, diff), "d/ d/changed=CHANGED d/own=own e/ e/in=now a directory f=now a file z=z")
	if same := m.do(llb.Diff{}, m.do(filesOp(file("/x", "x")), scratch), m.do(filesOp(llb.Action{Remove: &llb.Remove{Path: "/y", AllowMissing: true}}, file("/x", "x")), scratch)); same.Depth() != 0 {
		t.Errorf("roots that are the same differ by %+v", same)
	}
}

// A directory that was made anew hides what its own root had in it, and nothing of what is merged below it.
func TestMergeKeepsOpaqueToItself(t *testing.T) {
	m := newMachine(t)
	lower := m.do(filesOp(file("/d/old", "old"), file("/d/both", "of the lower")), scratch)
	upper := m.do(filesOp(llb.Action{Remove: &llb.Remove{Path: "/d"}}, file("/d/new", "new")), lower)
	m.want(upper, "d/ d/new=new")
	mine := m.do(filesOp(file("/d/mine", "mine"), file("/d/both", "both")), scratch)
	m.want(m.do(llb.Merge{}, mine, upper), "d/ d/mine=mine d/new=new")
	m.want(m.do(llb.Merge{}, scratch, mine, upper), "d/ d/mine=mine d/new=new")
	m.want(m.do(llb.Merge{}, mine, m.do(llb.Diff{}, lower, upper)), "d/ d/mine=mine d/new=new")
	m.want(m.do(llb.Merge{}, scratch, lower, mine), "d/ d/both=both d/mine=mine d/old=old")
}

// What a process writes to a mount that is an output becomes a layer over what the mount showed; what it writes to another is thrown away.
func TestMountOutputs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a process is run as root")
	}
	m := newMachine(t)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	sh := llb.Action{Mkfile: &llb.Mkfile{Path: "/bin/sh", Content: program, Attributes: llb.Attributes{Chmod: "0755"}}}
	root := m.do(filesOp(sh), scratch)
	shown := m.do(filesOp(file("/old", "old"), file("/gone", "gone")), scratch)
	op := llb.Exec{
		Args: []string{"/bin/sh", "-c", "echo -n new >/out/new; rm /out/gone; echo -n x >/thrown/away; echo -n kept >/kept"}, Cwd: "/", Network: llb.NetworkNone,
		Mounts: []llb.Mount{
			{Type: llb.MountBind, Target: "/thrown", Input: 1, Source: "/"},
			{Type: llb.MountBind, Target: "/out", Input: 1, Source: "/", Output: 1},
		},
	}
	p := m.plan(op, root, shown)
	made, err := m.Execute(t.Context(), p.Work, solver.Job{Stdout: io.Discard, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if len(made) != 2 || made[0].Output != 0 || made[1].Output != 1 {
		t.Fatalf("the step made %+v", made)
	}
	m.want(shown.Push(made[1].Layer), "new=new old=old")
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

// images has one image of one layer, which is opened as often as it says.
type images struct {
	blob   []byte
	diffID string
	opened int
}

func (i *images) Layers(context.Context, llb.Image) ([]ImageLayer, error) {
	return []ImageLayer{{DiffID: digest.Digest(i.diffID)}}, nil
}

func (i *images) Open(context.Context, llb.Image, ImageLayer) (io.ReadCloser, error) {
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
		m.Config.Images = img
		image := m.plan(llb.Image{}).Outputs[0]
		m.Expect(image, func() solver.Demand { return solver.Demand{Files: expected} })
		p := m.plan(copyOp(llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/file"}}, Dest: "/"}), scratch, image)
		ids, err := m.Snapshots.IDs()
		if err != nil || (len(ids) > 0) != expected {
			t.Errorf("files expected: %v: planning made the layers %v, %v", expected, ids, err)
		}
		made, err := m.Execute(t.Context(), p.Work, solver.Job{})
		if err != nil {
			t.Fatal(err)
		}
		m.want(solver.NewRef(made[0].Layer), "file=of the image")
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
				var complete bool
				p.Pack = func(ctx context.Context, form, id string, tar func(io.Writer) error) (string, []byte, error) {
					disturb()
					err := tar(io.Discard)
					complete = err == nil
					return "blob." + form, nil, err
				}
				p.Snapshots.Blob = func(string) (snapshot.Blob, bool) { return nil, true }
				run := func() ([]solver.Made, error) {
					p.look()
					step, err := p.Plan(t.Context(), copyOp(llb.Copy{Sources: sources, Dest: "/x/"}), llb.Meta{}, []solver.Ref{scratch, local})
					if err != nil {
						t.Fatal(err)
					}
					return p.Execute(t.Context(), step.Work, solver.Job{Demand: []solver.Demand{{Blob: "x"}}})
				}
				disturb = func() { change(p) }
				_, err := run()
				if err == nil || complete || !strings.Contains(err.Error(), "file") {
					t.Errorf("Run = %v, the blob is complete: %v", err, complete)
				}
				if ids, err := p.Snapshots.IDs(); err != nil || len(ids) > 0 {
					t.Errorf("the layers are %v, %v", ids, err)
				}
				disturb = func() {}
				p.write("d/file", "at rest")
				if l, err := run(); err != nil || !complete || p.Missing(t.Context(), l[0].Layer) != nil {
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
