package plan

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/session"
	"github.com/kilnbuild/kiln/solver/work"
)

// planner plans vertices over a build context. It needs no store, and no privilege.
type planner struct {
	*Planner
	fakeLayers
	t   *testing.T
	dir string
}

// fakeLayers gives manifests. It says what was asked for.
type fakeLayers struct {
	t         *testing.T
	manifests map[string]*layer.Manifest
	asked     map[string]int
}

func (f fakeLayers) Hides(ctx context.Context, r solver.Ref) ([]bool, error) {
	parts, err := f.Entries(ctx, r)
	var hides []bool
	for _, p := range parts {
		hides = append(hides, !p.Plain && p.Entries > 0)
	}
	return hides, err
}

func (f fakeLayers) Entries(_ context.Context, r solver.Ref) ([]layer.Part, error) {
	var layers []layer.Part
	for _, l := range r.Layers() {
		m := f.manifests[l.ID]
		if m == nil {
			return nil, fmt.Errorf("layer %s: %w", l.ID, fs.ErrNotExist)
		}
		f.asked[l.ID]++
		layers = append(layers, layer.Part{ID: layer.ID(l.ID), Manifest: m})
	}
	return layers, nil
}

// layer adds a layer of entries, and returns it.
func (f fakeLayers) layer(id string, entries ...layer.Entry) solver.Layer {
	f.t.Helper()
	name := filepath.Join(f.t.TempDir(), "manifest")
	w, err := layer.NewWriter(name)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range entries {
		if err := w.Add(&e); err != nil {
			f.t.Fatal(err)
		}
	}
	sum, err := w.Close(time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	m, err := layer.OpenManifest(name)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { m.Close() })
	f.manifests[id] = m
	return solver.Layer{ID: id, Content: solver.Content(sum.Content)}
}

// noSources has nothing, and takes every device.
type noSources struct{ Sources }

func (noSources) Devices(llb.Exec) error { return nil }

func newPlanner(t *testing.T) *planner {
	t.Helper()
	f := fakeLayers{t, map[string]*layer.Manifest{}, map[string]int{}}
	return &planner{&Planner{Layers: f, Sources: noSources{}, Session: &session.Session{}, Tmp: t.TempDir()}, f, t, t.TempDir()}
}

// look forgets what is known of the context, as a new build does.
func (p *planner) look() {
	p.t.Helper()
	d, err := localdir.Open(context.Background(), p.dir, nil, filepath.Join(p.Tmp, "id"), p.Tmp)
	if err != nil {
		p.t.Fatal(err)
	}
	p.Session.Locals = session.Trees{"context": d}
}

// content is a root that nothing has to be known of but its digest.
func content(n byte) solver.Ref {
	return solver.NewRef(solver.Layer{ID: strings.Repeat("0", 63) + string('0'+rune(n)), Content: solver.Content{n}})
}

var (
	scratch = solver.Ref{}
	local   = solver.Ref{Local: &llb.Local{Name: "context"}}
)

func (p *planner) step(op llb.Op, meta llb.Meta, in ...solver.Ref) (solver.Plan, error) {
	return p.Plan(p.t.Context(), op, meta, in)
}

func (p *planner) key(op llb.Op, meta llb.Meta, in ...solver.Ref) solver.Key {
	p.t.Helper()
	step, err := p.step(op, meta, in...)
	if err != nil {
		p.t.Fatalf("%+v: %v", op, err)
	}
	return solver.KeyOf(step.Inputs)
}

// change is an edit of one field of an op, and whether it makes another key.
type change[T any] struct {
	field string
	edit  func(*T)
	same  bool
}

// covered fails the test for a field of T that no change is about, so that nobody adds one and forgets the key.
func covered[T any](t *testing.T, changes []change[T]) {
	t.Helper()
	all := map[string]bool{}
	for _, c := range changes {
		all[c.field] = true
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[T]()) {
		if !f.Anonymous && !all[f.Name] {
			t.Errorf("nothing is said of %s.%s: does it change the key?", reflect.TypeFor[T](), f.Name)
		}
	}
}

func TestExecKey(t *testing.T) {
	p := newPlanner(t)
	op := func() llb.Exec {
		return llb.Exec{
			Args: []string{"/bin/sh", "-c", "make"}, Env: []string{"A=1", "B=2"}, Cwd: "/", User: "user", Network: llb.NetworkDefault, Security: llb.SecuritySandbox,
			Hostname: "h", RunOptions: llb.RunOptions{
				ExtraHosts: []llb.ExtraHost{{Host: "a", IP: "1.2.3.4"}}, Ulimits: []llb.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}}, ShmSize: 1, CgroupParent: "c",
			},
			Devices: []llb.Device{{Name: "d"}}, Proxy: []string{"http_proxy=x"},
			Mounts: []llb.Mount{
				{Type: llb.MountBind, Target: "/bind", Input: 1, Source: "/"},
				{Type: llb.MountCache, Target: "/cache", CacheID: "id", Sharing: llb.SharingShared, Mode: 0o755},
				{Type: llb.MountSecret, Target: "/secret", ID: "s", Mode: 0o400},
				{Type: llb.MountTmpfs, Target: "/tmp"},
			},
		}
	}
	meta := llb.Meta{Text: "RUN make", Platform: "linux/amd64"}
	base := p.key(op(), meta, content(1), content(2))
	if again := p.key(op(), meta, content(1), content(2)); again != base {
		t.Fatal("the same step has another key")
	}

	changes := []change[llb.Exec]{
		{"Args", func(e *llb.Exec) { e.Args[2] = "make all" }, false},
		{"Args", func(e *llb.Exec) { e.Args = []string{"/bin/sh", "-c make"} }, false},
		{"Args", func(e *llb.Exec) { e.Args = append(e.Args, "") }, false},
		{"Env", func(e *llb.Exec) { e.Env = []string{"B=2", "A=1"} }, false},
		{"Env", func(e *llb.Exec) { e.Env = e.Env[:1] }, false},
		{"Env", func(e *llb.Exec) { e.Args, e.Env = append(e.Args, e.Env[0]), e.Env[1:] }, false},
		{"Cwd", func(e *llb.Exec) { e.Cwd = "/x" }, false},
		{"User", func(e *llb.Exec) { e.User = "" }, false},
		{"Network", func(e *llb.Exec) { e.Network = llb.NetworkNone }, false},
		{"Security", func(e *llb.Exec) { e.Security = llb.SecurityInsecure }, false},
		{"Mounts", func(e *llb.Exec) { e.Mounts = e.Mounts[1:] }, false},
		{"Mounts", func(e *llb.Exec) { e.Mounts[0], e.Mounts[1] = e.Mounts[1], e.Mounts[0] }, false},
		{"ExtraHosts", func(e *llb.Exec) { e.ExtraHosts[0].Host = "b" }, false},
		{"ExtraHosts", func(e *llb.Exec) { e.ExtraHosts[0].IP = "4.3.2.1" }, true}, // addresses change from day to day
		{"Ulimits", func(e *llb.Exec) { e.Ulimits[0].Soft = 2 }, false},
		{"Ulimits", func(e *llb.Exec) { e.Ulimits = nil }, false},
		{"Hostname", func(e *llb.Exec) { e.Hostname = "" }, false},
		{"ShmSize", func(e *llb.Exec) { e.ShmSize = 2 }, false},
		{"CgroupParent", func(e *llb.Exec) { e.CgroupParent = "" }, false},
		{"Reproducible", func(e *llb.Exec) { e.Reproducible = true }, false},
		{"Devices", func(e *llb.Exec) { e.Devices = nil }, false},
		{"ReadOnly", func(e *llb.Exec) { e.ReadOnly = true }, false},
		{"ExitStatus", func(e *llb.Exec) { e.ExitStatus = []int{0, 3} }, false},
		{"Limits", func(e *llb.Exec) { e.Limits.Memory = 1 << 30 }, true},
		{"Proxy", func(e *llb.Exec) { e.Proxy = nil }, true},
		{"Shell", func(e *llb.Exec) { e.Shell = []string{"/bin/bash"} }, true}, // only what looks at a failed step uses it
	}
	covered(t, changes)
	for i, c := range changes {
		e := op()
		c.edit(&e)
		if same := p.key(e, meta, content(1), content(2)) == base; same != c.same {
			t.Errorf("change %d, of %s: the key is the same: %v, want %v", i, c.field, same, c.same)
		}
	}

	const bind, cache, secret, tmpfs = 0, 1, 2, 3
	type mountChange = change[llb.Mount]
	mounts := map[int][]mountChange{
		bind: {
			{"Type", func(m *llb.Mount) { m.Type = llb.MountCache }, false},
			{"Target", func(m *llb.Mount) { m.Target = "/other" }, false},
			{"Input", func(m *llb.Mount) { m.Input = 2 }, false},
			{"ReadOnly", func(m *llb.Mount) { m.ReadOnly = true }, false},
			{"Output", func(m *llb.Mount) { m.Output = 1 }, false},
		},
		cache: {
			{"CacheID", func(m *llb.Mount) { m.CacheID = "other" }, true},
			{"Sharing", func(m *llb.Mount) { m.Sharing = llb.SharingLocked }, true},
			{"Source", func(m *llb.Mount) { m.Source = "/sub" }, false},
			{"Mode", func(m *llb.Mount) { m.Mode = 0o700 }, false},
			{"UID", func(m *llb.Mount) { m.UID = 1 }, false},
			{"GID", func(m *llb.Mount) { m.GID = 1 }, false},
		},
		secret: {
			{"ID", func(m *llb.Mount) { m.ID = "other" }, false},
			{"Env", func(m *llb.Mount) { m.Env = "SECRET" }, false},
			{"Mode", func(m *llb.Mount) { m.Mode = 0o444 }, false},
			{"Required", func(m *llb.Mount) { m.Required = true }, true}, // it decides whether the step runs, not what it makes
		},
		tmpfs: {
			{"Size", func(m *llb.Mount) { m.Size = 1 << 20 }, false},
		},
	}
	var all []mountChange
	for i, list := range mounts {
		all = append(all, list...)
		for _, c := range list {
			e := op()
			c.edit(&e.Mounts[i])
			if same := p.key(e, meta, content(1), content(2), content(3)) == base; same != c.same {
				t.Errorf("change of Mount.%s of a %s: the key is the same: %v, want %v", c.field, op().Mounts[i].Type, same, c.same)
			}
		}
	}
	covered(t, all)

	// A mount's path cannot be taken for more than that.
	tricky := [2]llb.Exec{}
	tricky[0].Mounts = []llb.Mount{{Type: llb.MountCache, Target: "/a,ro=false,source=/b", ReadOnly: true, Source: "/c"}}
	tricky[1].Mounts = []llb.Mount{{Type: llb.MountCache, Target: "/a", Source: "/b,ro=true,source=/c"}}
	if p.key(tricky[0], meta, content(1)) == p.key(tricky[1], meta, content(1)) {
		t.Error("two different mounts have one key")
	}

	for what, key := range map[string]solver.Key{
		"the root":        p.key(op(), meta, content(3), content(2)),
		"a mount's input": p.key(op(), meta, content(1), content(3)),
		"the platform":    p.key(op(), llb.Meta{Platform: "linux/arm64"}, content(1), content(2)),
	} {
		if key == base {
			t.Errorf("%s is no part of the key", what)
		}
	}
	if p.key(op(), llb.Meta{Place: llb.Place{Stage: "s", Step: 7}, Text: "another", Platform: "linux/amd64", Location: llb.Location{File: "x", StartLine: 7}}, content(1), content(2)) != base {
		t.Error("the step's name or place is part of the key")
	}
}

func (p *planner) write(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		p.t.Fatal(err)
	}
}

func archive(t *testing.T, name, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))})
	_, werr := w.Write([]byte(text))
	if err := errors.Join(err, werr, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestCopyKey(t *testing.T) {
	p := newPlanner(t)
	reset := func() {
		if err := errors.Join(os.RemoveAll(p.dir), os.Mkdir(p.dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		p.write("dir/a", "a")
		p.write("dir/b", "b")
		p.write("dir/empty/x", "")
		os.Remove(filepath.Join(p.dir, "dir/empty/x"))
		if err := errors.Join(os.Symlink("a", filepath.Join(p.dir, "dir/link")), os.Link(filepath.Join(p.dir, "dir/a"), filepath.Join(p.dir, "dir/hard"))); err != nil {
			t.Fatal(err)
		}
		p.write("other", "other")
		p.write("tar", archive(t, "in/tar", "text"))
	}
	reset()
	epoch := int64(1000)
	op := func() llb.Copy {
		return llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/dir"}}, Dest: "/dest/"}
	}
	key := func(op llb.Copy) solver.Key {
		t.Helper()
		p.look()
		return p.key(copyOp(op), llb.Meta{}, scratch, local)
	}
	base := key(op())

	changes := []change[llb.Copy]{
		{"Sources", func(c *llb.Copy) { c.Sources[0].Path = "/other" }, false},
		{"Sources", func(c *llb.Copy) { c.Sources = append(c.Sources, llb.CopySource{Input: 1, Path: "/other"}) }, false},
		{"Sources", func(c *llb.Copy) { c.Sources[0].Path = "/d*r" }, true}, // it selects the same
		{"Dest", func(c *llb.Copy) { c.Dest = "/elsewhere/" }, false},
		{"Dest", func(c *llb.Copy) { c.Dest = "/dest" }, true}, // a directory goes there either way
		{"Attributes", func(c *llb.Copy) {}, true},
		{"Chown", func(c *llb.Copy) { c.Chown = "1:1" }, false},
		{"Chown", func(c *llb.Copy) { c.Chown = "0:0" }, true}, // it is root's without
		{"Chmod", func(c *llb.Copy) { c.Chmod = "0600" }, false},
		{"Exclude", func(c *llb.Copy) { c.Exclude = []string{"b"} }, false},
		{"Exclude", func(c *llb.Copy) { c.Exclude = []string{"nothing"} }, true},
		{"Parents", func(c *llb.Copy) { c.Parents = true }, false},
		{"Link", func(c *llb.Copy) { c.Link = true }, true}, // over nothing there is nothing to ignore
		{"Epoch", func(c *llb.Copy) { c.Epoch = &epoch }, false},
		{"Nanos", func(c *llb.Copy) { c.Epoch, c.Nanos = &epoch, 1 }, false},
		{"Dated", func(c *llb.Copy) { c.Epoch, c.Dated = &epoch, true }, false},
		{"UsersIn", func(c *llb.Copy) { c.UsersIn = 1 }, true}, // no name is looked up
		{"GroupsIn", func(c *llb.Copy) { c.GroupsIn = 1 }, true},
		{"NoFollow", func(c *llb.Copy) { c.NoFollow = true }, true}, // it is no link
		{"NoFollow", func(c *llb.Copy) { c.Sources[0].Path, c.NoFollow = "/dir/link", true }, false},
		{"AsDir", func(c *llb.Copy) { c.AsDir = true }, false},
		{"NoWildcards", func(c *llb.Copy) { c.NoWildcards = true }, true},
		{"MustMatch", func(c *llb.Copy) { c.MustMatch = true }, true},
		{"NoParents", func(c *llb.Copy) { c.NoParents = true }, true},
		{"Include", func(c *llb.Copy) { c.Include = []string{"a"} }, false},
		{"Include", func(c *llb.Copy) { c.Include = []string{"*"} }, true},
		{"Required", func(c *llb.Copy) { c.Required = []string{"/dir/a"} }, true},
		{"Replace", func(c *llb.Copy) { c.Replace = true }, true}, // there is nothing yet
	}
	covered(t, changes)
	for i, c := range changes {
		o := op()
		c.edit(&o)
		if same := key(o) == base; same != c.same {
			t.Errorf("change %d, of %s: the key is the same: %v, want %v", i, c.field, same, c.same)
		}
	}

	// What is selected decides, and nothing else of the context does.
	at := func(name string) string { return filepath.Join(p.dir, name) }
	for what, c := range map[string]struct {
		edit func() error
		same bool
	}{
		"bytes":           {func() error { return os.WriteFile(at("dir/a"), []byte("A"), 0o644) }, false},
		"a mode":          {func() error { return os.Chmod(at("dir/a"), 0o755) }, false},
		"a directory's":   {func() error { return os.Chmod(at("dir/empty"), 0o700) }, false},
		"a name":          {func() error { return os.Rename(at("dir/b"), at("dir/c")) }, false},
		"a link's target": {func() error { return errors.Join(os.Remove(at("dir/link")), os.Symlink("b", at("dir/link"))) }, false},
		"a link cut": {func() error {
			return errors.Join(os.Remove(at("dir/hard")), os.WriteFile(at("dir/hard"), []byte("a"), 0o644))
		}, false},
		"an empty folder": {func() error { return os.Remove(at("dir/empty")) }, false},
		"a file for folder": {func() error {
			return errors.Join(os.Remove(at("dir/empty")), os.WriteFile(at("dir/empty"), nil, 0o755))
		}, false},
		"a time":       {func() error { return os.Chtimes(at("dir/a"), time.Now(), time.Unix(5, 0)) }, true},
		"another file": {func() error { return os.WriteFile(at("other"), []byte("x"), 0o600) }, true},
	} {
		reset()
		if err := c.edit(); err != nil {
			t.Fatal(err)
		}
		if same := key(op()) == base; same != c.same {
			t.Errorf("%s: the key is the same: %v, want %v", what, same, c.same)
		}
	}
	reset()
	if key(op()) != base {
		t.Error("the same files, made again, have another key")
	}

	sources := []change[llb.CopySource]{
		{"Input", func(s *llb.CopySource) { s.Input = 2 }, false},
		{"Path", func(s *llb.CopySource) { s.Path = "/dir/a" }, false},
		{"AllowMissing", func(s *llb.CopySource) { s.AllowMissing = true }, true},
		{"Unpack", func(s *llb.CopySource) { s.Unpack = true }, false},
	}
	covered(t, sources)
	o := op()
	o.Sources[0] = llb.CopySource{Input: 1, Path: "/tar"}
	plain := key(o)
	for _, c := range sources {
		o := op()
		o.Sources[0] = llb.CopySource{Input: 1, Path: "/tar"}
		c.edit(&o.Sources[0])
		if c.field == "Input" {
			continue // which of a vertex's inputs is read shows in what is read
		}
		if same := key(o) == plain; same != c.same {
			t.Errorf("change of CopySource.%s: the key is the same: %v, want %v", c.field, same, c.same)
		}
	}
	o.Sources[0].Unpack = true
	unpacked := key(o)
	p.write("tar", archive(t, "in/tar", "TEXT"))
	if key(o) == unpacked {
		t.Error("another archive has the same key")
	}
}

// copyOp is an op that copies.
func copyOp(c llb.Copy) llb.Op { return llb.File{Actions: []llb.Action{{Copy: &c}}} }

// The key of a File is what its actions make: equal files made by other actions are the same.
func TestActionKeys(t *testing.T) {
	p := newPlanner(t)
	epoch := int64(1000)
	key := func(actions ...llb.Action) solver.Key {
		t.Helper()
		return p.key(llb.File{Actions: actions}, llb.Meta{}, scratch)
	}
	mkdir := llb.Action{Mkdir: &llb.Mkdir{Path: "/a/b"}}
	base := key(mkdir)
	dirs := []change[llb.Mkdir]{
		{"Path", func(m *llb.Mkdir) { m.Path = "/a/c" }, false},
		{"Attributes", func(*llb.Mkdir) {}, true},
		{"Chown", func(m *llb.Mkdir) { m.Chown = "5" }, false},
		{"Chown", func(m *llb.Mkdir) { m.Chown = "0:0" }, true},
		{"Chmod", func(m *llb.Mkdir) { m.Chmod = "0700" }, false},
		{"Chmod", func(m *llb.Mkdir) { m.Chmod = "0755" }, true},
		{"Epoch", func(m *llb.Mkdir) { m.Epoch = &epoch }, false},
		{"Nanos", func(m *llb.Mkdir) { m.Epoch, m.Nanos = &epoch, 1 }, false},
		{"UsersIn", func(m *llb.Mkdir) { m.UsersIn = 1 }, true},
		{"GroupsIn", func(m *llb.Mkdir) { m.GroupsIn = 1 }, true},
		{"NoParents", func(m *llb.Mkdir) { m.Path, m.NoParents = "/c", true }, false},
	}
	covered(t, dirs)
	for i, c := range dirs {
		op := llb.Mkdir{Path: "/a/b"}
		c.edit(&op)
		if same := key(llb.Action{Mkdir: &op}) == base; same != c.same {
			t.Errorf("change %d, of Mkdir.%s: the key is the same: %v, want %v", i, c.field, same, c.same)
		}
	}
	file := func() llb.Mkfile { return llb.Mkfile{Path: "/d/f", Content: []byte("text")} }
	f := file()
	base = key(llb.Action{Mkfile: &f})
	files := []change[llb.Mkfile]{
		{"Path", func(m *llb.Mkfile) { m.Path = "/d/g" }, false},
		{"Path", func(m *llb.Mkfile) { m.Path, m.Name = "/d/", "f" }, true},
		{"Name", func(m *llb.Mkfile) { m.Name = "x" }, true},  // there is no directory /d/f
		{"Link", func(m *llb.Mkfile) { m.Link = true }, true}, // over nothing there is nothing to ignore
		{"Content", func(m *llb.Mkfile) { m.Content = []byte("TEXT") }, false},
		{"Attributes", func(*llb.Mkfile) {}, true},
		{"Chown", func(m *llb.Mkfile) { m.Chown = "5" }, false},
		{"Chmod", func(m *llb.Mkfile) { m.Chmod = "0755" }, false},
		{"Epoch", func(m *llb.Mkfile) { m.Epoch = &epoch }, false},
		{"Nanos", func(m *llb.Mkfile) { m.Epoch, m.Nanos = &epoch, 1 }, false},
		{"UsersIn", func(m *llb.Mkfile) { m.UsersIn = 1 }, true},
		{"GroupsIn", func(m *llb.Mkfile) { m.GroupsIn = 1 }, true},
		{"NoParents", func(m *llb.Mkfile) { m.Path, m.NoParents = "/c", true }, false},
	}
	covered(t, files)
	for i, c := range files {
		op := file()
		c.edit(&op)
		if same := key(llb.Action{Mkfile: &op}) == base; same != c.same {
			t.Errorf("change %d, of Mkfile.%s: the key is the same: %v, want %v", i, c.field, same, c.same)
		}
	}
	link := llb.Action{Symlink: &llb.Symlink{Path: "/l", Target: "x"}}
	if key(link) == key(llb.Action{Symlink: &llb.Symlink{Path: "/l", Target: "y"}}) {
		t.Error("another target of a symbolic link has the same key")
	}
	// What is made and removed again leaves nothing, and a later action sees what an earlier one did.
	if key(llb.Action{Mkfile: &f}, llb.Action{Remove: &llb.Remove{Path: "/d"}}, link) != key(llb.Action{Remove: &llb.Remove{Path: "/x", AllowMissing: true}}, link) {
		t.Error("a file that was removed again shows in the key")
	}
	if key(mkdir, llb.Action{Symlink: &llb.Symlink{Path: "/a/l", Target: "b"}}, llb.Action{Mkfile: &llb.Mkfile{Path: "/a/l/f"}}) !=
		key(llb.Action{Mkdir: &llb.Mkdir{Path: "/a/b"}}, llb.Action{Mkfile: &llb.Mkfile{Path: "/a/b/f"}}, llb.Action{Symlink: &llb.Symlink{Path: "/a/l", Target: "b"}}) {
		t.Error("a link that an earlier action made is not followed")
	}
	for name, a := range map[string]llb.Action{
		"nothing to remove":            {Remove: &llb.Remove{Path: "/x"}},
		"a directory in none":          {Mkdir: &llb.Mkdir{Path: "/x/y", NoParents: true}},
		"a file in no directory":       {Mkfile: &llb.Mkfile{Path: "/x/y", NoParents: true}},
		"a copy to no directory":       {Copy: &llb.Copy{Sources: []llb.CopySource{{Input: 0, Path: "/"}}, Dest: "/x/y/", NoParents: true}},
		"a link where a directory is":  {Symlink: &llb.Symlink{Path: "/a", Target: "x"}},
		"a link in no directory":       {Symlink: &llb.Symlink{Path: "/x/l", Target: "x"}},
		"a file in a file":             {Mkfile: &llb.Mkfile{Path: "/f/x"}},
		"an action that is none":       {},
		"a file in place of directory": {Mkfile: &llb.Mkfile{Path: "/a"}},
	} {
		if _, err := p.step(llb.File{Actions: []llb.Action{mkdir, {Mkfile: &llb.Mkfile{Path: "/f"}}, a}}, llb.Meta{}, scratch); err == nil {
			t.Errorf("%s is no error", name)
		}
	}
}

// TestRandomKeys makes many steps of few words, so that they differ by where one ends and the next begins.
func TestRandomKeys(t *testing.T) {
	p := newPlanner(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	words := []string{"", "a", "b", "a=b", "arg", "env", "/a", "\x00", "a\nb", `"`, ","}
	word := func() string { return words[rnd.IntN(len(words))] }
	list := func() (out []string) {
		for range rnd.IntN(4) {
			out = append(out, word())
		}
		return out
	}
	seen := map[solver.Key]string{}
	for range 50000 {
		op := llb.Exec{Args: list(), Env: list(), Cwd: word(), User: word(), Hostname: word(), RunOptions: llb.RunOptions{CgroupParent: word()}, Devices: []llb.Device{{Name: word()}}}
		for range rnd.IntN(3) {
			op.Mounts = append(op.Mounts, llb.Mount{Type: llb.MountSecret, Target: word(), ID: word(), Env: word()})
		}
		data, err := json.Marshal(op)
		if err != nil {
			t.Fatal(err)
		}
		key, text := p.key(op, llb.Meta{}, content(1)), string(data)
		if other, ok := seen[key]; ok && other != text {
			t.Fatalf("one key for\n%s\n%s", text, other)
		}
		seen[key] = text
	}
}

// Planning reads manifests and nothing else: what is in the root decides where a file goes, and no file of a layer is opened, not even for
// names of owners and for archives.
func TestManifestsAreEnough(t *testing.T) {
	p := newPlanner(t)
	passwd := func(content byte) layer.Entry {
		return layer.Entry{Path: "etc/passwd", Type: layer.File, Mode: 0o644, Size: 1, Digest: layer.Digest{content}}
	}
	etc := layer.Entry{Path: "etc", Type: layer.Dir, Mode: 0o755}
	first := solver.NewRef(p.layer("first", etc, passwd(1), layer.Entry{Path: "srv", Type: layer.Symlink, Link: "etc"}))
	other := solver.NewRef(p.layer("other", etc, passwd(2), layer.Entry{Path: "srv", Type: layer.Symlink, Link: "etc"}))
	files := solver.NewRef(p.layer("files", layer.Entry{Path: "a.tar", Type: layer.File, Mode: 0o600, Size: 9, Digest: layer.Digest{9}}))
	from := func(c llb.Copy) llb.Op {
		c.Sources, c.Dest = []llb.CopySource{{Input: 1, Path: "/a.tar", Unpack: c.Link}}, "/srv/"
		c.Link = false
		return copyOp(c)
	}
	named := llb.Copy{Attributes: llb.Attributes{Chown: "app"}}
	if p.key(from(named), llb.Meta{}, first, files) == p.key(from(named), llb.Meta{}, other, files) {
		t.Error("another /etc/passwd gives a name the same owner")
	}
	if p.key(from(llb.Copy{}), llb.Meta{}, first, files) != p.key(from(llb.Copy{}), llb.Meta{}, other, files) {
		t.Error("the key of a copy without names depends on /etc/passwd")
	}
	dir := llb.File{Actions: []llb.Action{{Mkdir: &llb.Mkdir{Path: "/srv", Attributes: named.Attributes}}}}
	if p.key(dir, llb.Meta{}, first) != p.key(dir, llb.Meta{}, other) {
		t.Error("a directory that is there gets no owner, and its key depends on one")
	}
	if p.key(from(llb.Copy{Link: true}), llb.Meta{}, first, files) == p.key(from(llb.Copy{Link: true}), llb.Meta{}, other, files) {
		t.Error("what an archive is unpacked over has no part in the key")
	}
	mount := llb.Exec{Mounts: []llb.Mount{{Type: llb.MountBind, Input: 1, Source: "/srv/passwd"}}}
	if p.key(mount, llb.Meta{}, scratch, first) == p.key(mount, llb.Meta{}, scratch, other) {
		t.Error("another mounted file has the same key")
	}
}

// Layers are stacked as they are, unless one of them hides by an opaque directory more than it was made to hide.
func TestMergeAndDiff(t *testing.T) {
	p := newPlanner(t)
	dir := layer.Entry{Path: "d", Type: layer.Dir, Mode: 0o755}
	opaque := dir
	opaque.Opaque = true
	file := func(name string) layer.Entry {
		return layer.Entry{Path: name, Type: layer.File, Size: 1, Digest: layer.Digest{1}}
	}
	a := p.layer("a", dir, file("d/a"))
	b := p.layer("b", dir, file("d/b"))
	hides := p.layer("hides", opaque, file("d/c"))
	root, lower := solver.NewRef(a), solver.NewRef(b)
	upper := lower.Push(hides)
	plain := solver.NewRef(b, a)
	plan := func(op llb.Op, in ...solver.Ref) solver.Plan {
		t.Helper()
		got, err := p.step(op, llb.Meta{}, in...)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	done := func(got solver.Plan, want solver.Ref) {
		t.Helper()
		if !got.Done || !reflect.DeepEqual(got.Outputs, []solver.Ref{want}) {
			t.Errorf("the plan is %+v, want %+v", got, want)
		}
	}
	done(plan(llb.Merge{}, root, lower), solver.NewRef(a, b))
	done(plan(llb.Merge{}, scratch, lower, root), solver.NewRef(b, a))
	done(plan(llb.Merge{}, upper), upper) // what lies below is what it was made over
	done(plan(llb.Diff{}, lower, plain), solver.NewRef(a))
	done(plan(llb.Diff{}, plain, plain), scratch)
	done(plan(llb.Diff{}, scratch, plain), plain)
	explicit := work.Explicit{Layers: []work.Layer{{Root: lower, AsIs: true}, {Root: upper}}}
	if got := plan(llb.Merge{}, root, upper); !reflect.DeepEqual(got.Work, explicit) {
		t.Errorf("Merge is planned as %+v", got)
	}
	if got := plan(llb.Diff{}, lower, upper); !reflect.DeepEqual(got.Work, work.Explicit{Layers: explicit.Layers[1:]}) {
		t.Errorf("Diff is planned as %+v", got)
	}
	if got := plan(llb.Diff{}, root, lower); !reflect.DeepEqual(got.Work, work.Diff{Lower: root, Upper: lower}) {
		t.Errorf("Diff of roots that do not lie on one another is planned as %+v", got)
	}
	if p.key(llb.Diff{}, llb.Meta{}, root, lower) == p.key(llb.Diff{}, llb.Meta{}, root, upper) {
		t.Error("different differences have one key")
	}
}
