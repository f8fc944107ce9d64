// Package torture treats a finished kiln badly, and looks whether what it makes is still right: it is killed at any
// moment, started many times at once, its root is damaged, its disk runs full. There is nothing in it but tests.
//
// go test runs a quick form; KILN_TORTURE=1000 asks for so many rounds of what is done at random. A failure names its
// seed, and KILN_TORTURE_SEED repeats it.
package torture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/kilnbuild/kiln/internal/kilntest"
	"golang.org/x/sys/unix"
)

var (
	kilnPath string // the kiln that is tortured
	base     string // the OCI layout of its base image
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("run as root: the tests mount file systems and read what every process has open")
	}
	tmp, err := os.MkdirTemp("", "kiln-torture-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	kilnPath = filepath.Join(tmp, "kiln")
	build := exec.Command("go", "build", "-o", kilnPath, "github.com/kilnbuild/kiln/cmd/kiln")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build kiln: %w\n%s", err, out)
	}
	base = filepath.Join(tmp, "base")
	if err := kilntest.Base(base); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// rounds returns how often something is done at random: quick times, or as often as KILN_TORTURE says.
func rounds(t *testing.T, quick int) int {
	s := os.Getenv("KILN_TORTURE")
	if s == "" {
		return quick
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("KILN_TORTURE: %v", err)
	}
	return n
}

func random(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KILN_TORTURE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("KILN_TORTURE_SEED: %v", err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("KILN_TORTURE_SEED=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// project is a build context with a root directory to build it in.
type project struct {
	t    *testing.T
	dir  string
	root string
	// marked says that the Dockerfile takes the root, by which its processes are found.
	marked bool
}

func newProject(t *testing.T, root string, files map[string]string) *project {
	t.Helper()
	p := &project{t: t, dir: t.TempDir(), root: root}
	for name, text := range files {
		p.write(name, text)
	}
	p.marked = strings.Contains(files["Dockerfile"], "ARG ROOT")
	return p
}

func (p *project) write(name, text string) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		p.t.Fatal(err)
	}
}

// kiln returns a command that builds the project.
func (p *project) kiln(args ...string) *exec.Cmd {
	cmd := exec.Command(kilnPath, append([]string{"build", "--progress=plain", "--build-context", "base=oci-layout://" + base}, append(args, p.dir)...)...)
	if p.marked {
		cmd.Args = append(cmd.Args, "--build-arg", "ROOT="+p.root)
	}
	cmd.Env = append(os.Environ(), "KILN_ROOT="+p.root, "KILN_CONFIG="+os.DevNull, "DOCKER_CONFIG="+p.dir)
	return cmd
}

// try builds the project to a tar of its files.
func (p *project) try(args ...string) (tarball []byte, log string, err error) {
	cmd := p.kiln(append(args, "-o", "type=tar,dest=-")...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.Bytes(), errs.String(), err
}

func (p *project) build(args ...string) []byte {
	p.t.Helper()
	out, log, err := p.try(args...)
	if err != nil {
		p.t.Fatalf("kiln build: %v\n%s", err, log)
	}
	return out
}

// clean fails the test if something was left behind.
func (p *project) clean() {
	p.t.Helper()
	left, err := kilntest.Leftovers(p.root)
	if err != nil {
		p.t.Fatal(err)
	}
	if len(left) > 0 {
		p.t.Errorf("left behind: %s", strings.Join(left, ", "))
	}
}

func treeDigest(t *testing.T, tarball []byte) string {
	t.Helper()
	d, err := kilntest.TreeDigest(bytes.NewReader(tarball))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// fiveSteps has every kind of step, the root in the environment of its processes by which they are found, a process that does not want to
// end, and something that no two rounds share.
const fiveSteps = `ARG ROOT
FROM base AS tools
ARG ROOT
ARG ROUND
WORKDIR /work
COPY tree /work/tree
RUN echo $ROUND > /tmp/round && for i in 1 2 3 4 5 6 7 8; do head -c 20000 /dev/zero | tr '\0' $i > /work/$i; done; rm /tmp/round

FROM base
ARG ROOT
RUN (trap '' TERM INT HUP; setsid sleep 10000 & setsid setsid sleep 10000 &) ; mkdir /a && ln -s /bin/sh /a/sh && mkfifo /a/fifo && chmod 4755 /bin/busybox && rm /etc/group
COPY --from=tools /work /work
RUN cat /work/[1-8] | md5sum > /sum && rm -r /work/tree/3 && mkdir /work/tree/3
COPY --chown=user tree/1 /last/
`

func fiveStepFiles() map[string]string {
	files := map[string]string{"Dockerfile": fiveSteps}
	for i := range 40 {
		files[fmt.Sprintf("tree/%d/file%d", i%5, i)] = strings.Repeat(fmt.Sprint(i), 1000*i)
	}
	return files
}

// addMany adds so many files that a layer in which few of them are different is made over one that is there.
func addMany(files map[string]string) {
	for i := range 1100 {
		files[fmt.Sprintf("tree/many/%d", i)] = fmt.Sprint(i)
	}
}

// TestKill kills kiln at random moments. The build that follows must make what an undisturbed one makes, and leave
// nothing of itself or of the one that was killed.
func TestKill(t *testing.T) {
	rnd := random(t)
	files := fiveStepFiles()
	addMany(files)
	p := newProject(t, filepath.Join(t.TempDir(), "root"), files)
	var want [2]string
	started := time.Now()
	for i := range want {
		p.write("tree/many/77", fmt.Sprint("changed to ", i))
		want[i] = treeDigest(t, p.build("-t", "ref"))
	}
	full := time.Since(started) / 2
	p.clean()
	started = time.Now()
	p.build("--build-arg", "ROUND=warm")
	warm := time.Since(started)

	n := rounds(t, 12)
	killed := 0
	for i := range n {
		within := warm
		if i%5 == 0 {
			within = full
			// From nothing: the root itself, the base image and every step.
			if err := os.RemoveAll(p.root); err != nil {
				t.Fatal(err)
			}
		}
		round := fmt.Sprintf("ROUND=%d", i)
		p.write("tree/many/77", fmt.Sprint("changed to ", i%2))
		after := time.Duration(rnd.Int64N(int64(within) * 11 / 10))
		cmd := p.kiln("--build-arg", round, "-t", "killed", "-o", "type=image", "-o", "type=tar,dest="+filepath.Join(p.dir, "..", "out.tar"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(after, func() { cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil {
			killed++
		}
		kill.Stop()
		if left, err := kilntest.WaitGone(nil, p.root); err != nil || len(left) > 0 {
			t.Errorf("round %d, killed after %v: processes live on: %v, %v", i, after, left, err)
		}
		dead := kilntest.DeadGroups() // perhaps of kilns of other tests too, whose groups go as well
		out, log, err := p.try("--build-arg", round)
		if err != nil {
			t.Fatalf("round %d, killed after %v: the next build fails: %v\n%s", i, after, err, log)
		}
		if got := treeDigest(t, out); got != want[i%2] {
			t.Fatalf("round %d, killed after %v: the next build makes another image", i, after)
		}
		for _, dir := range kilntest.DeadGroups() {
			if slices.Contains(dead, dir) {
				t.Errorf("round %d, killed after %v: the next build leaves the control group %s", i, after, dir)
			}
		}
		p.clean()
		if t.Failed() {
			t.FailNow()
		}
	}
	checkStore(t, p, "again")
	if killed == 0 {
		t.Errorf("kiln was killed in none of %d rounds", n)
	}
	t.Logf("%d rounds, kiln killed in %d, a whole build takes %v, one with most in the cache %v", n, killed, full.Round(time.Millisecond), warm.Round(time.Millisecond))
}

// checkStore builds the project into the store and looks at the image from outside.
func checkStore(t *testing.T, p *project, name string) {
	t.Helper()
	if out, err := p.kiln("-t", name).CombinedOutput(); err != nil {
		t.Fatalf("kiln build: %v\n%s", err, out)
	}
	index, err := layout.ImageIndexFromPath(p.root)
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(stored(t, p.root, name).Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := kilntest.Validate(img); err != nil {
		t.Errorf("the image in the store: %v", err)
	}
}

// stored returns the entry of an image in the store.
func stored(t *testing.T, root, name string) v1.Descriptor {
	t.Helper()
	index, err := layout.ImageIndexFromPath(root)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Manifests {
		if d.Annotations["io.containerd.image.name"] == "docker.io/library/"+name+":latest" {
			return d
		}
	}
	t.Fatalf("the store has no image %s", name)
	return v1.Descriptor{}
}

// TestManyAtOnce starts many processes on one cold root. All must make the same, and every RUN must have run once.
func TestManyAtOnce(t *testing.T) {
	files := map[string]string{"Dockerfile": `FROM base AS one
RUN --mount=type=cache,id=count,target=/count echo one >> /count/runs; head -c 300000 /dev/zero > /one
FROM base AS two
RUN --mount=type=cache,id=count,target=/count echo two >> /count/runs; seq 10000 > /two
FROM base
COPY data /data
COPY --from=one /one /
COPY --from=two /two /
RUN --mount=type=cache,id=count,target=/count echo three >> /count/runs; cat /one /two /data/* | md5sum > /sum
`}
	for i := range 20 {
		files[fmt.Sprintf("data/%d", i)] = strings.Repeat(fmt.Sprint(i), 1000)
	}
	p := newProject(t, filepath.Join(t.TempDir(), "root"), files)
	n := 20
	if s := rounds(t, 0); s > 0 {
		n = min(s, 100)
	}
	digests := make([]string, n)
	outputs := t.TempDir()
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range n {
		wg.Go(func() {
			file := filepath.Join(outputs, fmt.Sprint(i))
			out, err := p.kiln("-t", fmt.Sprintf("many%d", i), "-o", "type=image", "-o", "type=tar,dest="+file).CombinedOutput()
			if err != nil {
				t.Errorf("process %d: %v\n%s", i, err, out)
				return
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Error(err)
				return
			}
			digests[i], _ = kilntest.TreeDigest(bytes.NewReader(data))
		})
	}
	wg.Wait()
	took := time.Since(begin)
	if t.Failed() {
		return
	}
	for i := range n {
		img, want := stored(t, p.root, fmt.Sprintf("many%d", i)), stored(t, p.root, "many0")
		if digests[i] == "" || digests[i] != digests[0] || img.Digest != want.Digest {
			t.Errorf("process %d made %s with files %s, process 0 %s with %s", i, img.Digest, digests[i], want.Digest, digests[0])
		}
	}
	counts, err := filepath.Glob(filepath.Join(p.root, "mounts", "*", "fs", "runs"))
	if err != nil || len(counts) != 1 {
		t.Fatalf("the cache mount is %v, %v", counts, err)
	}
	runs, err := os.ReadFile(counts[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"one", "two", "three"} {
		if got := strings.Count(string(runs), step+"\n"); got != 1 {
			t.Errorf("RUN %s ran %d times", step, got)
		}
	}
	p.clean()
	checkStore(t, p, "many0")
	t.Logf("%d processes in %v", n, took.Round(time.Millisecond))
}

// TestFlippedBits changes one bit of a file in the root. Nothing that a build then exports may differ: either what is
// damaged is made again, or the build says what is wrong.
func TestFlippedBits(t *testing.T) {
	rnd := random(t)
	files := fiveStepFiles()
	p := newProject(t, filepath.Join(t.TempDir(), "root"), files)
	want := treeDigest(t, p.build("--build-arg", "ROUND=0"))
	outputs := t.TempDir()
	all := func() []string {
		return []string{"--build-arg", "ROUND=0", "-t", "flip", "-o", "type=image", "-o", "type=oci,dest=" + outputs + "/oci.tar",
			"-o", "type=oci,tar=false,dest=" + outputs + "/oci", "-o", "type=local,dest=" + outputs + "/local"}
	}
	if out, err := p.kiln(all()...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantLocal := dirDigest(t, outputs+"/local")
	// A pristine copy of the root is put back after every round.
	pristine := filepath.Join(t.TempDir(), "pristine")
	sh(t, "cp", "-a", p.root, pristine)
	candidates := targets(t, p.root)

	n := rounds(t, 14)
	outcome := map[string]int{}
	for i := range n {
		kind := []string{"layer file", "manifest", "note", "record", "blob", "compressed", "index"}[i%7]
		list := candidates[kind]
		if len(list) == 0 {
			t.Fatalf("there is no %s in the root", kind)
		}
		path := list[rnd.IntN(len(list))]
		flip(t, rnd, path)
		os.RemoveAll(outputs + "/oci")
		os.RemoveAll(outputs + "/local")
		os.Remove(outputs + "/oci.tar")

		rel, _ := filepath.Rel(p.root, path)
		what := fmt.Sprintf("round %d, a bit of %s (%s)", i, rel, kind)
		out, err := p.kiln(all()...).CombinedOutput()
		if err != nil {
			outcome[kind+": error"]++
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 && exit.ExitCode() != 125 || !bytes.Contains(out, []byte("\nkiln: ")) && !bytes.HasPrefix(out, []byte("kiln: ")) {
				t.Errorf("%s: %v\n%s", what, err, out)
			}
			// Nobody has to clean up by hand: the build after the error is right.
			if kind != "index" {
				if out, err := p.kiln(all()...).CombinedOutput(); err != nil {
					outcome[kind+": error for ever"]++
					t.Errorf("%s: the second build fails too: %v\n%s", what, err, out)
				}
			}
		} else {
			outcome[kind+": right"]++
		}
		if _, err := os.Stat(outputs + "/local"); err == nil {
			if got := dirDigest(t, outputs+"/local"); got != wantLocal {
				t.Errorf("%s: type=local ships it", what)
			}
		}
		if _, err := os.Stat(outputs + "/oci"); err == nil {
			validateLayout(t, what, outputs+"/oci")
		}
		if tarball, log, err := p.try("--build-arg", "ROUND=0"); err == nil && treeDigest(t, tarball) != want {
			t.Errorf("%s: type=tar ships it\n%s", what, log)
		}
		p.clean()
		if t.Failed() {
			t.FailNow()
		}
		sh(t, "rm", "-rf", p.root)
		sh(t, "cp", "-a", pristine, p.root)
	}
	t.Logf("%d rounds: %v", n, outcome)
}

func sh(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// targets returns the regular files of the root that hold something, by what they are.
func targets(t *testing.T, root string) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if info, err := e.Info(); err != nil || info.Size() == 0 {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		parts := strings.Split(rel, "/")
		kind := ""
		switch {
		case parts[0] == "layers" && parts[2] == "fs":
			kind = "layer file"
		case parts[0] == "layers" && parts[2] == "manifest":
			kind = "manifest"
		case parts[0] == "layers" && parts[2] != "unsynced": // that one has no check sum, and if it is wrong the layer is compared
			kind = "note"
		case parts[0] == "records" && !strings.HasSuffix(path, ".log"):
			kind = "record"
		case parts[0] == "blobs":
			kind = "blob"
		case parts[0] == "compressed":
			kind = "compressed"
		case parts[0] == "index.json":
			kind = "index"
		}
		out[kind] = append(out[kind], path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// flip changes one bit of a file, and neither its size nor its times.
func flip(t *testing.T, rnd *rand.Rand, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	at := rnd.Int64N(info.Size())
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << rnd.IntN(8)
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// dirDigest is TreeDigest of a directory.
func dirDigest(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("tar", "-C", dir, "--sort=name", "-cf", "-", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	return treeDigest(t, out)
}

func validateLayout(t *testing.T, what, dir string) {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return // the index is written last: an export that broke off has none, and nobody can use it
	}
	if err := validate.Index(index); err != nil {
		t.Errorf("%s: the OCI layout ships it: %v", what, err)
	}
}

// TestFullDisk builds on file systems of different sizes, of which the smaller ones run full at different moments. The
// error has to say so, what was begun has to be gone, and a small build has to work at once.
func TestFullDisk(t *testing.T) {
	if rounds(t, 0) == 0 {
		t.Run("small", func(t *testing.T) { testFullDisk(t, 1, []int{6, 9, 14, 20, 40}) })
		return
	}
	var few, many []int
	for mib := 4; mib < 60; mib++ {
		few = append(few, mib)
	}
	for mib := 20; mib <= 200; mib += 5 {
		many = append(many, mib)
	}
	t.Run("small", func(t *testing.T) { testFullDisk(t, 1, few) })
	t.Run("large", func(t *testing.T) { testFullDisk(t, 6, many) })
}

// testFullDisk builds what takes some 27 MiB, times so much, on disks of so many MiB.
func testFullDisk(t *testing.T, times int, sizes []int) {
	big := newProject(t, "", map[string]string{"Dockerfile": fmt.Sprintf(`FROM base
COPY context /context
RUN dd if=/dev/urandom of=/random bs=100k count=%d
RUN dd if=/dev/urandom of=/more bs=100k count=%d && rm /random
`, 50*times, 40*times), "context": strings.Repeat("0123456789abcdef", times<<17)})
	small := newProject(t, "", map[string]string{"Dockerfile": "FROM scratch\nCOPY a /\n", "a": "a"})
	full, fits := 0, 0
	for _, mib := range sizes {
		dir := t.TempDir()
		image := filepath.Join(dir, "disk")
		sh(t, "truncate", "-s", fmt.Sprintf("%dM", mib), image)
		sh(t, "mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", image)
		mnt := filepath.Join(dir, "mnt")
		if err := os.Mkdir(mnt, 0o755); err != nil {
			t.Fatal(err)
		}
		sh(t, "mount", "-o", "loop", image, mnt)
		unmounted := false
		unmount := func() {
			if !unmounted {
				unmounted = true
				sh(t, "umount", mnt)
			}
		}
		t.Cleanup(unmount)
		big.root = filepath.Join(mnt, "root")
		small.root = big.root

		out, err := big.kiln("-t", "big").CombinedOutput()
		if err == nil {
			fits++
		} else {
			full++
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 && exit.ExitCode() != 125 || !bytes.Contains(bytes.ToLower(out), []byte("no space left on device")) {
				t.Errorf("%d MiB: %v\n%s", mib, err, out)
			}
		}
		big.clean()
		if out, err := small.kiln("-t", "small").CombinedOutput(); err != nil {
			t.Errorf("%d MiB: a small build afterwards: %v\n%s", mib, err, out)
		}
		small.clean()
		// No pins: nothing of kiln's is mounted or open there.
		unmount()
	}
	if full == 0 || fits == 0 {
		t.Errorf("%d disks ran full, and %d did not: the sizes are no test", full, fits)
	}
	t.Logf("%d disks ran full, %d did not", full, fits)
}

// TestSignals stops builds at random moments. The exit status is the signal's, everything that ran ends, and nothing is left
// at once, not only after the next command.
func TestSignals(t *testing.T) {
	rnd := random(t)
	files := fiveStepFiles()
	files["Dockerfile"] += "RUN (trap '' TERM INT HUP; setsid sleep 10000 & setsid setsid sleep 10000 &); trap '' TERM INT; while :; do sleep 1; done\n"
	p := newProject(t, filepath.Join(t.TempDir(), "root"), files)
	n := rounds(t, 8)
	early := 0
	var worst time.Duration
	for i := range n {
		sig := []unix.Signal{unix.SIGINT, unix.SIGTERM}[i%2]
		ctx, cancel := context.WithTimeout(t.Context(), kilntest.Hang)
		cmd := p.kiln("--build-arg", fmt.Sprintf("ROUND=%d", i))
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		context.AfterFunc(ctx, func() { cmd.Process.Kill() })
		time.Sleep(30*time.Millisecond + time.Duration(rnd.Int64N(int64(600*time.Millisecond))))
		sent := time.Now()
		cmd.Process.Signal(sig)
		cmd.Wait()
		took := time.Since(sent)
		cancel()
		worst = max(worst, took)
		switch status := cmd.ProcessState.Sys().(syscall.WaitStatus); {
		case status.Signaled() && status.Signal() == sig && out.Len() == 0:
			early++ // it did not listen to signals yet, and had begun nothing
		case status.ExitStatus() != 128+int(sig):
			t.Errorf("round %d: %v after %v\n%s", i, cmd.ProcessState, sig, out.String())
		}
		if left, err := kilntest.WaitGone(nil, p.root); err != nil || len(left) > 0 {
			t.Errorf("round %d: %v, %v", i, left, err)
		}
		p.clean()
	}
	if early == n {
		t.Errorf("kiln ended by the signal itself in each of %d rounds", n)
	}
	t.Logf("%d rounds, %d of them before kiln listened, the slowest end took %v", n, early, worst.Round(time.Millisecond))
}
