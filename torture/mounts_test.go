package torture

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// mountSteps fill a cache mount once. A step fails that finds some of the files and not all, or others.
const mountSteps = `FROM base
ARG ROUND
RUN --network=none --mount=type=cache,id=many,target=/many set -e; cd /many; \
    if test -e list; then sha256sum -c list > /dev/null; test $(find . -type f | wc -l) = 1501; echo whole; \
    elif test "$(ls)"; then echo half of it: $(ls | head -3); exit 1; \
    else echo empty; for d in $(seq 30); do mkdir $d; for f in $(seq 50); do head -c 3000 /dev/urandom > $d/$f; done; done; \
    find . -type f | xargs sha256sum > /tmp/list; cp /tmp/list list; fi
`

// printed reports whether a step has printed a line.
func printed(log, line string) bool {
	return regexp.MustCompile(`(?m)^#\d+ [0-9.]+ ` + line + `$`).MatchString(log)
}

// TestKillRestore kills kiln at random moments while it restores a cache mount. The next build finds the mount as it was exported, and
// nothing of the one that was killed.
func TestKillRestore(t *testing.T) {
	rnd := random(t)
	p := newProject(t, filepath.Join(t.TempDir(), "root"), map[string]string{"Dockerfile": mountSteps})
	cache := filepath.Join(t.TempDir(), "cache")
	p.build("--cache-to", "type=local,mounts=all,dest="+cache)
	from := "--cache-from=type=local,mounts=all,src=" + cache
	var full time.Duration
	n := rounds(t, 10)
	killed := 0
	for i := range n + 1 {
		q := *p
		q.root = filepath.Join(t.TempDir(), "root")
		started := time.Now()
		cmd := q.kiln("--build-arg", "ROUND=1", from)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Hour, func() {})
		if i > 0 {
			kill = time.AfterFunc(time.Duration(rnd.Int64N(int64(full))), func() { cmd.Process.Kill() })
		}
		if err := cmd.Wait(); err != nil {
			killed++
		}
		kill.Stop()
		if i == 0 {
			full = time.Since(started)
		}
		_, log, err := q.try("--build-arg", "ROUND=2", from)
		if err != nil {
			t.Fatalf("round %d: the next build fails: %v\n%s", i, err, log)
		}
		if !printed(log, "whole") {
			t.Errorf("round %d: the mount was not restored:\n%s", i, log)
		}
		q.clean()
		if err := os.RemoveAll(q.root); err != nil {
			t.Fatal(err)
		}
	}
	if killed == 0 {
		t.Errorf("kiln was killed in none of %d rounds", n)
	}
	t.Logf("%d rounds, kiln killed in %d", n, killed)
}

// TestDamagedMount restores a cache mount from a cache of which something was damaged: a step finds all files or none, and what the build
// exports afterwards is whole.
func TestDamagedMount(t *testing.T) {
	rnd := random(t)
	p := newProject(t, filepath.Join(t.TempDir(), "root"), map[string]string{"Dockerfile": mountSteps})
	sound := filepath.Join(t.TempDir(), "cache")
	p.build("--cache-to", "type=local,mounts=all,dest="+sound)
	n := rounds(t, 10)
	whole := 0
	for i := range n {
		cache := filepath.Join(t.TempDir(), "cache")
		sh(t, "cp", "-r", sound, cache)
		what := damageBlob(t, rnd, cache)
		for round := range 3 {
			q := *p
			q.root = filepath.Join(t.TempDir(), "root")
			_, log, err := q.try("--build-arg", fmt.Sprint("ROUND=", round), "--cache-from", "type=local,mounts=all,src="+cache,
				"--cache-to", "type=local,mounts=all,dest="+cache)
			if err != nil {
				t.Errorf("round %d, %s: %v\n%s", i, what, err, log)
			}
			if printed(log, "whole") {
				whole++
			} else if round == 2 && !strings.Contains(log, "is not used: ") { // what becomes of a whole cache is TestDamagedCache's
				t.Errorf("round %d, %s: the third build finds no mount\n%s", i, what, log)
			}
			q.clean()
			if err := os.RemoveAll(q.root); err != nil {
				t.Fatal(err)
			}
		}
	}
	if whole == 0 {
		t.Error("no mount was ever restored")
	}
	t.Logf("%d rounds; in %d of %d builds the mount was restored", n, whole, 3*n)
}

// damageBlob does something bad to a blob of a cache in a directory, and says what.
func damageBlob(t *testing.T, rnd *rand.Rand, cache string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(cache, "blobs/sha256/*"))
	if err != nil || len(all) < 2 {
		t.Fatalf("%d blobs, %v", len(all), err)
	}
	path, other := all[rnd.IntN(len(all))], all[rnd.IntN(len(all))]
	name := filepath.Base(path)
	var what string
	switch rnd.IntN(4) {
	case 0:
		what, err = "without "+name, os.Remove(path)
	case 1:
		size := rnd.Int64N(1000)
		what, err = fmt.Sprintf("%s of %d bytes", name, size), os.Truncate(path, size)
	case 2:
		var data []byte
		if data, err = os.ReadFile(other); err == nil {
			what, err = name+" replaced by "+filepath.Base(other), os.WriteFile(path, data, 0o644)
		}
	default:
		flip(t, rnd, path)
		what = "a flipped bit in " + name
	}
	if err != nil {
		t.Fatal(err)
	}
	return what
}
