package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/solvertest"
)

func open(t *testing.T, root string) *Cache {
	t.Helper()
	c, err := Open(root, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestContract(t *testing.T) {
	root := t.TempDir()
	var all []*Cache
	solvertest.TestCache(t, func() solver.Cache {
		c := open(t, root)
		all = append(all, c)
		return c
	})
	for _, c := range all {
		if left, _ := os.ReadDir(c.tmp); len(left) > 0 {
			t.Errorf("left in tmp: %v", left)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(root, "locks")); len(left) > 0 {
		t.Errorf("left in locks: %v", left)
	}
}

// put stores a record with a log and returns the path of its file.
func put(t *testing.T, c *Cache, key solver.Key, r *solver.Record, text string) string {
	t.Helper()
	log, err := c.NewLog()
	if err != nil {
		t.Fatal(err)
	}
	log.Write([]byte(text))
	if err := c.Put(key, r, log); err != nil {
		t.Fatal(err)
	}
	return c.path(key)
}

func TestEveryDamageIsAMiss(t *testing.T) {
	c := open(t, t.TempDir())
	key, r := solvertest.Record(1)
	path := put(t, c, key, r, "")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, at int, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := c.Get(key)
		miss, ok := errors.AsType[*solver.Miss](err)
		if got != nil || !ok || !strings.Contains(miss.Reason, "damaged") {
			t.Fatalf("%s at byte %d: Get = %+v, %v, want a miss that says why", what, at, got, err)
		}
	}
	for i := range whole {
		for bit := range 8 {
			data := bytes.Clone(whole)
			data[i] ^= 1 << bit
			check("a flipped bit", i, data)
		}
		// The checksum's last line may lack its newline: nothing is lost with that.
		if i < len(whole)-1 {
			check("a cut", i, whole[:i])
		}
		zeros := append(bytes.Clone(whole[:i]), make([]byte, len(whole)-i)...)
		check("zeros", i, zeros)
	}
	check("something more", len(whole), append(bytes.Clone(whole), 'x'))
	check("itself twice", len(whole), append(bytes.Clone(whole), whole...))

	// Another key's record in its place, though sound.
	other, r2 := solvertest.Record(2)
	foreign, err := os.ReadFile(put(t, c, other, r2, ""))
	if err != nil {
		t.Fatal(err)
	}
	check("the record of another key", 0, foreign)

	// Things that are no files.
	for _, make := range []func() error{
		func() error { return os.Mkdir(path, 0o700) },
		func() error { return os.Symlink(c.path(other), path) },
	} {
		if err := errors.Join(os.Remove(path), make()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Get(key); !errors.As(err, new(*solver.Miss)) {
			t.Errorf("Get = %v, want a miss", err)
		}
	}
	// A damaged record is replaced by a sound one.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, whole[:9], 0o600); err != nil {
		t.Fatal(err)
	}
	put(t, c, key, r, "")
	if got, err := c.Get(key); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("Get = %+v, %v", got, err)
	}
}

func TestLogIsKept(t *testing.T) {
	c := open(t, t.TempDir())
	key, r := solvertest.Record(1)
	text := strings.Repeat("line\n", 10000)
	r.LogSize = int64(len(text))
	path := put(t, c, key, r, text)
	if got, err := os.ReadFile(path + ".log"); err != nil || string(got) != text {
		t.Fatalf("the log has %d bytes, %v", len(got), err)
	}
	// The step runs again and prints nothing: the old log must not stay beside the new record.
	put(t, c, key, r, "")
	if _, err := os.Lstat(path + ".log"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log of the earlier run is still there: %v", err)
	}
	log, err := c.NewLog()
	if err != nil {
		t.Fatal(err)
	}
	log.Write([]byte("x"))
	if err := errors.Join(log.Close(), log.Close()); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(c.tmp); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}

func FuzzDecode(f *testing.F) {
	key, r := solvertest.Record(1)
	text := encode(key, r)
	f.Add(text)
	f.Add(text[:len(text)/2])
	f.Add("")
	f.Add("kiln record 1\nsum ")
	f.Fuzz(func(t *testing.T, data string) {
		if got, err := decode(key, data); err == nil && !reflect.DeepEqual(got.Inputs, r.Inputs) {
			t.Errorf("a record with other inputs is taken for that of the key: %+v", got)
		}
	})
}

// The log of a step that failed stays until the step runs again, however old it is. That of a record that is gone does not.
func TestSweepKeepsLogsOfFailures(t *testing.T) {
	c := open(t, t.TempDir())
	fail := func(key solver.Key, text string) string {
		t.Helper()
		log, err := c.NewLog()
		if err != nil {
			t.Fatal(err)
		}
		log.Write([]byte(text))
		path, err := c.PutFailed(key, log)
		if err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-1000 * time.Hour)
		if err := os.Chtimes(path, old, old); err != nil && text != "" {
			t.Fatal(err)
		}
		return path
	}
	key, r := solvertest.Record(1)
	path := fail(key, "why it failed\n")
	lost, gone := solvertest.Record(2)
	stray := put(t, c, lost, gone, "what it printed\n")
	old := time.Now().Add(-2 * strayAge)
	if err := errors.Join(os.Remove(stray), os.Chtimes(stray+".log", old, old)); err != nil {
		t.Fatal(err)
	}
	if err := c.Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(stray + ".log"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log of a record that is gone: %v", err)
	}
	var listed []part.Item
	for it, err := range c.Part(nil).Items(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if it.Kind == part.Log {
			listed = append(listed, it)
		}
	}
	if len(listed) != 1 || listed[0].ID != key.String() || listed[0].Size == 0 {
		t.Errorf("logs of failures: %+v", listed)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "why it failed\n" {
		t.Errorf("the log of the failure: %q, %v", data, err)
	}
	fail(key, "") // it failed again, without a word
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log of an earlier failure: %v", err)
	}
	fail(key, "x")
	put(t, c, key, r, "")
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log of a failure of a step that succeeded since: %v", err)
	}
}

// What a step made last is found by its own digest, then by its place, and, as something to start from alone, by the same place in another
// project. Steps of other platforms, stages, files and kinds are others.
func TestLastOfAPlace(t *testing.T) {
	c := open(t, t.TempDir())
	var g llb.Graph
	root := g.Add(llb.Scratch{}, llb.Meta{}).Output(0)
	n := 0
	vertex := func(change func(*llb.Meta)) *llb.Vertex {
		n++
		meta := llb.Meta{
			Place:    llb.Place{Project: "/p", Stage: "build", Step: 2, Steps: n, Platform: "linux/amd64", Target: "linux/amd64", Platforms: n},
			Location: llb.Location{File: "Dockerfile"},
		}
		change(&meta)
		return g.Add(llb.File{Actions: []llb.Action{{Mkdir: &llb.Mkdir{Path: fmt.Sprint("/", n)}}}}, meta, root)
	}
	same := func(*llb.Meta) {}
	key, r := solvertest.Record(1)
	put(t, c, key, r, "")
	first := vertex(same)
	if err := c.SetLast(first, key); err != nil {
		t.Fatal(err)
	}
	check := func(what string, v *llb.Vertex, found, own bool) {
		t.Helper()
		got, same := c.Last(v)
		if (got != nil) != found || same != own {
			t.Errorf("%s: %v, %v", what, got, same)
		}
	}
	check("the step itself", first, true, true)
	check("the step that is at its place now", vertex(same), true, true)
	check("another project", vertex(func(m *llb.Meta) { m.Place.Project = "/q" }), true, false)
	for what, change := range map[string]func(*llb.Meta){
		"another file":     func(m *llb.Meta) { m.Location.File = "other" },
		"another stage":    func(m *llb.Meta) { m.Place.Stage = "test" },
		"another step":     func(m *llb.Meta) { m.Place.Step = 3 },
		"another platform": func(m *llb.Meta) { m.Place.Platform = "linux/arm64" },
		"another target":   func(m *llb.Meta) { m.Place.Target = "linux/arm64" },
		"no instruction":   func(m *llb.Meta) { m.Place.Group, m.Text = "internal", "download x" },
	} {
		check(what, vertex(change), false, false)
	}
	internal := func(text string) *llb.Vertex {
		return vertex(func(m *llb.Meta) { m.Place.Group, m.Text = "internal", text })
	}
	if err := c.SetLast(internal("download x"), key); err != nil {
		t.Fatal(err)
	}
	check("the same download", internal("download x"), true, true)
	check("another download", internal("download y"), false, false)
	n++
	check("another kind", g.Add(llb.Exec{Cwd: fmt.Sprint(n)}, first.Meta(), root), false, false)
}

// A record in the form of another version is a miss, and says so where it is what a step made last.
func TestRecordOfAnotherVersion(t *testing.T) {
	c := open(t, t.TempDir())
	var g llb.Graph
	v := g.Add(llb.Scratch{}, llb.Meta{})
	key, r := solvertest.Record(1)
	path := put(t, c, key, r, "")
	if err := c.SetLast(v, key); err != nil {
		t.Fatal(err)
	}
	old := "kiln record 2\nkey " + key.String() + "\nlayer 00 00\n"
	old += fmt.Sprintf("sum %x\n", sha256.Sum256([]byte(old)))
	if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(key); !errors.As(err, new(*solver.Miss)) || !strings.Contains(err.Error(), "another version") {
		t.Errorf("Get = %v", err)
	}
	if last, same := c.Last(v); last == nil || len(last.Inputs) > 0 || !same {
		t.Errorf("Last = %+v, %v", last, same)
	}
}
