package torture

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/kilntest"
)

// command returns a command of kiln other than build for the project's root.
func (p *project) command(args ...string) *exec.Cmd {
	cmd := exec.Command(kilnPath, args...)
	cmd.Env = append(os.Environ(), "KILN_ROOT="+p.root, "KILN_CONFIG="+os.DevNull, "DOCKER_CONFIG="+p.dir, "KILN_PROGRESS=plain")
	return cmd
}

// check fails the test unless kiln check finds nothing.
func (p *project) check(what string) {
	p.t.Helper()
	if out, err := p.command("check").CombinedOutput(); err != nil {
		p.t.Errorf("%s: kiln check: %v\n%s", what, err, out)
	}
}

// empty removes everything, and fails the test if something is left but the directories, the list of images, and the note of when a build
// last measured the root directory, which it does where the disk is nearly full.
func (p *project) empty() {
	p.t.Helper()
	out, err := p.command("images", "-q", "--no-trunc").Output()
	if err != nil {
		p.t.Fatalf("kiln images: %v", err)
	}
	for id := range strings.FieldsSeq(string(out)) {
		if out, err := p.command("rmi", id).CombinedOutput(); err != nil {
			p.t.Fatalf("kiln rmi: %v\n%s", err, out)
		}
	}
	if out, err := p.command("prune", "-f", "-a").CombinedOutput(); err != nil {
		p.t.Fatalf("kiln prune: %v\n%s", err, out)
	}
	err = filepath.WalkDir(p.root, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(p.root, path)
		if err == nil && !e.IsDir() && rel != "oci-layout" && rel != "index.json" && rel != "locks/index" && rel != "gc" {
			p.t.Errorf("%s is left", rel)
		}
		if err == nil && strings.Count(rel, "/") > 0 && filepath.Dir(rel) != "records" && rel != "blobs/sha256" && rel != "locks/index" {
			p.t.Errorf("%s is left", rel)
		}
		return err
	})
	if err != nil {
		p.t.Error(err)
	}
}

// TestPruneWhileBuilding lets builds, prunes and a check work on one root at once, and kills some of them. Every build that ends
// must have made the right image, and no check may find anything.
func TestPruneWhileBuilding(t *testing.T) {
	rnd := random(t)
	root := filepath.Join(t.TempDir(), "root")
	// Two projects share steps, two have theirs alone.
	var projects []*project
	var want []string
	for i := range 4 {
		files := fiveStepFiles()
		addMany(files)
		files["tree/0/own"] = fmt.Sprint(i / 2)
		files["Dockerfile"] += "RUN --mount=type=cache,target=/c date > /c/last\n"
		p := newProject(t, root, files)
		projects = append(projects, p)
		alone := *p
		alone.root = filepath.Join(t.TempDir(), "root")
		if i%2 == 1 {
			want = append(want, want[i-1])
			continue
		}
		want = append(want, treeDigest(t, alone.build("--build-arg", "ROUND=x")))
	}
	// As a build leaves it where the disk is nearly full.
	if err := errors.Join(os.MkdirAll(root, 0o700), os.WriteFile(filepath.Join(root, "gc"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	long := 4 * time.Second
	if n := rounds(t, 0); n > 0 {
		long = time.Duration(n) * time.Second
	}
	deadline := time.Now().Add(long)
	const enough = 4 // builds and checks that end, however long that takes
	var seeds sync.Mutex
	number := func(n int64) int64 {
		seeds.Lock()
		defer seeds.Unlock()
		return rnd.Int64N(n)
	}
	var builds, killed, prunes, checks atomic.Int64
	goOn := func() bool { return time.Now().Before(deadline) || builds.Load() < enough || checks.Load() < enough }
	// run runs a command, and kills every fifth. It reports false for one that was killed.
	run := func(cmd *exec.Cmd) (out, log []byte, ok bool, err error) {
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Start(); err != nil {
			return nil, nil, true, err
		}
		var shot atomic.Bool
		if number(5) == 0 {
			kill := time.AfterFunc(time.Duration(number(int64(300*time.Millisecond))), func() { shot.Store(true); cmd.Process.Kill() })
			defer kill.Stop()
		}
		err = cmd.Wait()
		if err != nil && shot.Load() {
			killed.Add(1)
			return nil, nil, false, nil
		}
		return stdout.Bytes(), stderr.Bytes(), true, err
	}
	var wg sync.WaitGroup
	loop := func(f func()) {
		wg.Go(func() {
			for goOn() && !t.Failed() {
				f()
			}
		})
	}
	for i, p := range projects {
		loop(func() {
			// ROUND is in the environment of a step that writes the same whatever it is.
			cmd := p.kiln("--build-arg", fmt.Sprintf("ROUND=%d", number(3)), "-t", fmt.Sprintf("app%d", i), "-o", "type=image", "-o", "type=tar,dest=-")
			out, log, ok, err := run(cmd)
			switch {
			case !ok:
				return
			case err != nil:
				t.Errorf("build: %v\n%s", err, log)
				return
			}
			builds.Add(1)
			if got := treeDigest(t, out); got != want[i] {
				t.Errorf("project %d has made another image\n%s", i, log)
			}
			if number(3) == 0 {
				if out, err := p.command("rmi", fmt.Sprintf("app%d", i)).CombinedOutput(); err != nil {
					t.Errorf("kiln rmi: %v\n%s", err, out)
				}
			}
		})
	}
	for _, args := range [][]string{{"prune", "-f", "-a"}, {"prune", "-f"}, {"prune", "-f", "--max-used-space", "2MB"}, {"check"}, {"images"}} {
		loop(func() {
			out, log, ok, err := run(projects[0].command(args...))
			if ok && err != nil {
				t.Errorf("kiln %s: %v\n%s%s", strings.Join(args, " "), err, out, log)
			}
			if !ok {
				return
			}
			if args[0] == "check" {
				checks.Add(1)
			} else {
				prunes.Add(1)
			}
		})
	}
	wg.Wait()
	if left, err := kilntest.WaitGone(nil, root); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	if t.Failed() {
		t.FailNow()
	}
	projects[0].check("afterwards")
	checkStore(t, projects[0], "app0")
	projects[0].clean()
	projects[0].empty()
	t.Logf("%d builds, %d prunes, %d checks, %d of all were killed", builds.Load(), prunes.Load(), checks.Load(), killed.Load())
}

// TestDamagedFiles damages the files of a root one after the other. kiln check must name each; the next build is right or says
// what is wrong; and after a repair it is right.
func TestDamagedFiles(t *testing.T) {
	rnd := random(t)
	p := newProject(t, filepath.Join(t.TempDir(), "root"), fiveStepFiles())
	want := treeDigest(t, p.build("--build-arg", "ROUND=0"))
	all := []string{"--build-arg", "ROUND=0", "-t", "app", "-o", "type=image", "-o", "type=oci,dest=" + filepath.Join(t.TempDir(), "oci.tar")}
	if out, err := p.kiln(all...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p.check("before")
	pristine := filepath.Join(t.TempDir(), "pristine")
	sh(t, "cp", "-a", p.root, pristine)
	var files []string
	err := filepath.WalkDir(p.root, func(path string, e os.DirEntry, err error) error {
		rel, _ := filepath.Rel(p.root, path)
		// Locks hold nothing; a log has nothing that it could be compared with; the lack of a hint, or a note of a crash, is no damage;
		// a layout of another version is not for kiln to repair.
		if err != nil || !e.Type().IsRegular() || strings.HasPrefix(rel, "locks/") || strings.HasSuffix(rel, ".log") ||
			strings.HasSuffix(rel, "/unsynced") || rel == "oci-layout" || strings.HasPrefix(rel, "mounts/") {
			return err
		}
		files = append(files, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string]func(path string, size int64) error{
		"truncated": func(path string, size int64) error { return os.Truncate(path, size/2) },
		"emptied":   func(path string, size int64) error { return os.Truncate(path, 0) },
		"zeroed":    func(path string, size int64) error { return errors.Join(os.Truncate(path, 0), os.Truncate(path, size)) },
		"flipped": func(path string, size int64) error {
			flip(t, rnd, path)
			return nil
		},
		"removed": func(path string, size int64) error { return os.Remove(path) },
	}
	kinds := []string{"truncated", "emptied", "zeroed", "flipped", "removed"}
	type round struct{ file, kind string }
	var todo []round
	if n := rounds(t, 0); n > 0 {
		for range n {
			todo = append(todo, round{files[rnd.IntN(len(files))], kinds[rnd.IntN(len(kinds))]})
		}
	} else {
		// Of each kind of file one, by each kind of damage in turn.
		for kind, list := range targets(t, p.root) {
			if kind != "" {
				rel, _ := filepath.Rel(p.root, list[rnd.IntN(len(list))])
				todo = append(todo, round{rel, kinds[len(todo)%len(kinds)]})
			}
		}
		todo = append(todo, round{"oci-layout", "emptied"}, round{"index.json", "truncated"})
	}
	for _, r := range todo {
		what := r.file + " " + r.kind
		path := filepath.Join(p.root, r.file)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() == 0 && r.kind != "removed" {
			continue
		}
		if err := damages[r.kind](path, info.Size()); err != nil {
			t.Fatal(err)
		}
		damagedFile(t, p, what, r.file, r.kind, all, want)
		if t.Failed() {
			t.FailNow()
		}
		sh(t, "rm", "-rf", p.root)
		sh(t, "cp", "-a", pristine, p.root)
	}
	t.Logf("%d files damaged, of %d", len(todo), len(files))
}

func damagedFile(t *testing.T, p *project, what, file, kind string, all []string, want string) {
	out, err := p.command("check").CombinedOutput()
	if file == "index.json" && kind == "flipped" {
		// Nothing vouches for it: what it says now is another name, or a digest that no blob has.
	} else if kind == "removed" && !bytes.Contains(out, []byte(file)) {
		// Nothing says that a record, a note or a cache file was there.
		if strings.HasPrefix(file, "layers/") && strings.Contains(file, "/fs/") || strings.HasPrefix(file, "blobs/") && err == nil && strings.Contains(string(mustIndex(t, p)), filepath.Base(file)) {
			t.Errorf("%s: kiln check does not say so: %v\n%s", what, err, out)
		}
	} else if err == nil || !bytes.Contains(out, []byte(file)) {
		t.Errorf("%s: kiln check does not say so: %v\n%s", what, err, out)
	}
	out, err = p.command("check", "--repair").CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
		t.Errorf("%s: kiln check --repair: %v\n%s", what, err, out)
	}
	if log, err := p.kiln(all...).CombinedOutput(); err != nil {
		t.Errorf("%s: the build after the repair: %v\n%s\n%s", what, err, out, log)
		return
	}
	if got := treeDigest(t, p.build("--build-arg", "ROUND=0")); got != want {
		t.Errorf("%s: the build after the repair makes another image\n%s", what, out)
	}
	p.check(what + ", repaired and built")
	checkStore(t, p, "app")
}

func mustIndex(t *testing.T, p *project) []byte {
	data, err := os.ReadFile(filepath.Join(p.root, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}
