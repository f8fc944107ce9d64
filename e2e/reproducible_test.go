//go:build e2e

package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sync/errgroup"
)

// surroundings are those of one build: a reproducible one gives the same digest in all of them.
type surroundings struct {
	name string
	// prefix is the beginning of the command line that everything runs with.
	prefix []string
	env    []string
	umask  string
	// prepare is run by the shell first, with the directory that has all else as its working directory.
	prepare string
	user    bool // everything belongs to an ordinary user
	flags   []string
	// earlier builds an earlier commit first, in the same root directory.
	earlier bool
	// often is set where images are built that take long, also without LONG.
	often bool
}

// everywhere returns the surroundings. The first publish a cache in a directory, which the last begin with.
func everywhere(dir string) []surroundings {
	cache := filepath.Join(dir, "cache")
	return []surroundings{
		{name: "root", often: true, flags: []string{"--cache-to", "type=local,mode=min,compression=uncompressed,dest=" + cache}},
		{name: "user", often: true, user: true, prefix: []string{"unshare", "--mount", "sh", "-euc", asUser, dir}},
		{name: "umask, locale, time zone", umask: "077", env: []string{"TZ=Asia/Kolkata", "LANG=tr_TR.UTF-8", "LC_ALL=tr_TR.UTF-8"}},
		// A tmpfs lists the files of a directory from the last one that was made to the first.
		{name: "tmpfs", prefix: []string{"unshare", "--mount"}, prepare: "mount -t tmpfs tmpfs .; cd \"$PWD\""},
		{name: "one processor", prefix: []string{"taskset", "-c", "0"}},
		{name: "copies of roots", env: []string{"KILN_TEST_MOUNT=copy"}},
		{
			name: "xfs, host name, earlier commit", prefix: []string{"unshare", "--mount", "--uts"}, earlier: true,
			prepare: "hostname elsewhere; truncate -s 8G disk; mkfs.xfs -q disk; mkdir long-name-of-a-disk; mount -o loop disk long-name-of-a-disk; cd long-name-of-a-disk",
		},
		{name: "from a cache", often: true, flags: []string{"--cache-from", "type=local,src=" + cache}},
	}
}

// asUser runs what follows as a user that the machine does not know, whose range of IDs the files in the directory $0 say.
const asUser = `mount --bind $0/passwd /etc/passwd; mount --bind $0/ranges /etc/subuid; mount --bind $0/ranges /etc/subgid
export HOME=/ USER=builder; exec setpriv --reuid 54321 --regid 54321 --clear-groups "$@"`

// subject is something to build.
type subject struct {
	name string
	// dir has the context, setup is run by the shell in the directory above it.
	dir, setup string
	flags      []string
	// slow says that it is built where often is set, and elsewhere only with LONG.
	slow bool
}

// TestReproducible builds images in different surroundings, and compares their digests. With KILN_LONG=1 it also builds the example 30 times
// without the cache. CONFORM names a directory with conformance cases, of which it builds some; it may be missing.
func TestReproducible(t *testing.T) {
	long := os.Getenv("KILN_LONG") != ""
	dir := shared(t)
	base := filepath.Join(dir, "base")
	command(t, "../example/mkbase", base)
	busybox := []string{"--build-context", "busybox=oci-layout://" + base}
	subjects := []subject{{name: "example", dir: "../example", flags: busybox}}
	subjects = append(subjects, cases(t, os.Getenv("CONFORM"), busybox)...)
	debianFlags := []string{"--build-arg", "BASE=" + debian}
	for name, value := range proxies(t) {
		debianFlags = append(debianFlags, "--build-arg", name+"="+value)
	}
	subjects = append(subjects,
		subject{name: "flask", dir: "testdata/flask", flags: debianFlags, slow: true},
		subject{name: "mariadb", dir: "testdata/database", flags: debianFlags, slow: true})
	for i := range subjects {
		bundle(t, dir, &subjects[i])
	}

	all := everywhere(dir)
	digests := make([]map[string]string, len(all))
	build := func(i int) (err error) {
		digests[i], err = buildAll(dir, i, all[i], slices.DeleteFunc(slices.Clone(subjects), func(s subject) bool {
			return s.slow && !all[i].often && !long
		}))
		return err
	}
	if err := build(0); err != nil { // it publishes the cache
		t.Fatal(err)
	}
	var g errgroup.Group
	g.SetLimit(max(2, runtime.NumCPU()))
	for i := range all[1:] {
		g.Go(func() error { return build(i + 1) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, got := range digests {
		for _, name := range slices.Sorted(maps.Keys(got)) {
			if want := digests[0][name]; got[name] != want {
				t.Errorf("%s: %s in the surroundings %q, and %s in %q", name, got[name], all[i].name, want, all[0].name)
			}
		}
		t.Logf("%s: %d images are the same", all[i].name, len(got))
	}
	if !long {
		return
	}
	const rounds = 30
	again := all[0]
	again.flags = []string{"--no-cache"}
	for range rounds {
		got, err := buildAll(dir, 0, again, subjects[:1])
		if err != nil {
			t.Fatal(err)
		}
		if got["example"] != digests[0]["example"] {
			t.Errorf("%s without the cache, and %s before", got["example"], digests[0]["example"])
		}
	}
	t.Logf("the example is the same %d times without the cache", rounds)
}

// shared returns a directory that every user of the machine can read, with kiln and what asUser needs.
func shared(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kiln-reproducible-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(kilnPath)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"passwd": append(passwd, "builder:x:54321:54321::/:/bin/sh\n"...), "ranges": []byte("builder:1000000:3000000000\n"), "kiln": program,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// bundle makes a repository of a subject's context, of two commits, as one file that can be cloned.
func bundle(t *testing.T, dir string, s *subject) {
	t.Helper()
	work := t.TempDir()
	if err := os.CopyFS(work+"/ctx", os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	script := `export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_COMMITTER_DATE='1500000000 +0000' GIT_AUTHOR_DATE='1500000000 +0000'
		( :
		` + s.setup + `
		)
		cd ctx; git init -q -b main; git config user.name t; git config user.email t@example.org
		echo earlier > .earlier; git add -Af; git commit -q -m one
		git rm -q .earlier; GIT_COMMITTER_DATE='1600000000 +0000' git commit -q -m two
		git bundle create -q "$0" main`
	cmd := exec.Command("sh", "-euc", script, filepath.Join(dir, s.name+".bundle"))
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", s.name, err, out)
	}
}

// build is run by the shell for a subject, as NAME FLAGS…: it builds a checkout in $SHARED's terms and puts the digest into the working directory.
const buildScript = `name=$1; shift
rm -rf "$name"; git clone -q -b main "$SHARED/$name.bundle" "$name"
if [ "$EARLIER" = true ]; then
	git -C "$name" checkout -q HEAD~1
	"$SHARED/kiln" build --reproducible --progress=plain -o type=cacheonly "$@" "$name"
	git -C "$name" checkout -q main
fi
"$SHARED/kiln" build --reproducible --progress=plain -o "type=oci,dest=$name.oci" -o "type=tar,dest=$name.files" --metadata-file "$name.json" "$@" "$name"
printf '\n%s %s %s\n' "DIGEST=$name" $(sha256sum < "$name.files" | cut -c1-64) "$(tr -d '\n' < "$name.json")"
rm -r "$name.oci" "$name.files"
`

// buildAll builds subjects in the surroundings of that number, and returns their digests by name.
func buildAll(dir string, number int, s surroundings, subjects []subject) (map[string]string, error) {
	work := filepath.Join(dir, strconv.Itoa(number))
	if err := os.MkdirAll(work, 0o755); err != nil {
		return nil, err
	}
	if s.user {
		if err := os.Chown(work, 54321, 54321); err != nil {
			return nil, err
		}
	}
	script := "umask " + cmp.Or(s.umask, "022") + "\n" + s.prepare + "\nbuild() {\n" + buildScript + "}\n" + `export KILN_ROOT="$PWD/root"` + "\n"
	for _, b := range subjects {
		script += "build " + b.name
		for _, f := range slices.Concat(b.flags, s.flags) {
			script += " '" + f + "'"
		}
		script += "\n"
	}
	args := append(slices.Clone(s.prefix), "bash", "-euc", script)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = work
	cmd.Env = slices.Concat(os.Environ(), []string{
		"KILN_CONFIG=/dev/null", "DOCKER_CONFIG=" + dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "SHARED=" + dir,
		"EARLIER=" + strconv.FormatBool(s.earlier),
	}, s.env)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", s.name, err, out)
	}
	digests := map[string]string{}
	for line := range strings.Lines(string(out)) {
		rest, ok := strings.CutPrefix(line, "DIGEST=")
		if !ok {
			continue
		}
		fields := strings.SplitN(rest, " ", 3)
		var made struct {
			Digest string `json:"containerimage.digest"`
		}
		if err := json.Unmarshal([]byte(fields[2]), &made); err != nil {
			return nil, err
		}
		digests[fields[0]] = made.Digest + " with the files " + fields[1]
	}
	if len(digests) != len(subjects) {
		return nil, fmt.Errorf("%s: %d images of %d were built\n%s", s.name, len(digests), len(subjects), out)
	}
	return digests, nil
}

// conformance are cases that differ in what they do: owners, links, devices, archives, deletions, times, several stages. None of them has
// options, or needs a network or more of its base than busybox.
var conformance = []string{
	"add-tar-hardlink-with-dot-prefix", "add-tar-owners-kept", "add-tar-pax-sparse-file", "add-tar-special-files", "add-tar-user-xattr",
	"copy-dir-contents-no-slashes", "copy-from-keeps-capabilities", "copy-hardlinks-over-two-sources", "copy-link-several-in-a-row",
	"copy-nested-dir-modes-and-mtimes", "copy-parents-double-star", "copy-unicode-names", "copy-symlinks-in-tree-kept",
	"mount-cache-not-in-layer", "run-fifo", "run-empties-dir", "run-hardlinks-in-one-layer", "run-heredoc",
	"run-sparse-file", "run-swaps-two-files",
}

// cases returns the conformance cases below a directory; none if it is "".
func cases(t *testing.T, dir string, flags []string) []subject {
	t.Helper()
	if dir == "" {
		t.Log("CONFORM does not name a directory with conformance cases: none is built")
		return nil
	}
	var all []subject
	for _, name := range conformance {
		a, err := txtar.ParseFile(filepath.Join(dir, "conformance/cases", name+".txtar"))
		if err != nil {
			t.Fatal(err)
		}
		s := subject{name: name, dir: filepath.Join(t.TempDir(), "ctx"), flags: flags}
		for _, f := range a.Files {
			path := ""
			switch {
			case f.Name == "setup.sh":
				s.setup = string(f.Data)
				continue
			case f.Name == "Dockerfile":
				path = f.Name
			default:
				var ok bool
				if path, ok = strings.CutPrefix(f.Name, "ctx/"); !ok {
					continue
				}
			}
			path = filepath.Join(s.dir, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, f.Data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, s)
	}
	return all
}
