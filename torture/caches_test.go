package torture

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDamagedCache builds on empty roots from a cache of which something was damaged. Whatever that is, the build succeeds and its files
// are right; and what it publishes there is a cache again, from which the next build is right.
func TestDamagedCache(t *testing.T) {
	rnd := random(t)
	files := fiveStepFiles()
	files["Dockerfile"] += "FROM base\nCOPY --from=0 / /all\nRUN --network=none cat /all/etc/passwd > /passwd 2>/dev/null || :\n"
	p := newProject(t, filepath.Join(t.TempDir(), "root"), files)
	sound := filepath.Join(t.TempDir(), "cache")
	want := treeDigest(t, p.build("--cache-to", "type=local,mode=max,dest="+sound))
	p.clean()
	n := rounds(t, 10)
	hits := 0
	for i := range n {
		cache := filepath.Join(t.TempDir(), "cache")
		sh(t, "cp", "-r", sound, cache)
		what := damageCache(t, rnd, cache)
		for range 2 {
			q := *p
			q.root = filepath.Join(t.TempDir(), "root")
			tarball, log, err := q.try("--cache-from", "type=local,src="+cache, "--cache-to", "type=local,mode=max,dest="+cache)
			if err != nil {
				t.Errorf("round %d, %s: %v\n%s", i, what, err, log)
			} else if got := treeDigest(t, tarball); got != want {
				t.Errorf("round %d, %s: the files are %s, want %s\n%s", i, what, got, want, log)
			}
			if strings.Contains(log, "CACHED") {
				hits++
			}
			q.clean()
			if err := os.RemoveAll(q.root); err != nil {
				t.Fatal(err)
			}
		}
	}
	if hits == 0 {
		t.Error("nothing was ever found in a cache")
	}
	t.Logf("%d rounds; in %d of %d builds something was found in the cache", n, hits, 2*n)
}

// damageCache does something bad to a cache, and says what.
func damageCache(t *testing.T, rnd *rand.Rand, dir string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	if err != nil || len(all) < 2 {
		t.Fatalf("%d blobs, %v", len(all), err)
	}
	all = append(all, filepath.Join(dir, "index.json"))
	path, other := all[rnd.IntN(len(all))], all[rnd.IntN(len(all))]
	name := filepath.Base(path)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	switch rnd.IntN(8) {
	case 0:
		check(os.Remove(path))
		return "without " + name
	case 1:
		info, err := os.Stat(path)
		check(err)
		size := rnd.Int64N(info.Size() + 1)
		check(os.Truncate(path, size))
		return fmt.Sprintf("%s cut to %d bytes", name, size)
	case 2:
		data, err := os.ReadFile(other)
		check(err)
		check(os.WriteFile(path, data, 0o644))
		return name + " replaced by " + filepath.Base(other)
	case 3:
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		check(err)
		_, err = f.WriteString("more")
		check(err)
		check(f.Close())
		return name + " with more at its end"
	case 4:
		check(os.Remove(path))
		check(os.Symlink("/etc/passwd", path))
		return name + " replaced by a link out of the cache"
	case 5:
		check(os.RemoveAll(filepath.Join(dir, "blobs")))
		return "without blobs"
	}
	for range 1 + rnd.IntN(3) {
		flip(t, rnd, path)
	}
	return "flipped bits in " + name
}
