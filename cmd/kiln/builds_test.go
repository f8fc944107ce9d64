package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/kilntest"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestBuilds runs the stories of testdata/builds: builds as a user sees them, with a real base image, in real sandboxes.
//
//	$KILN_ROOT   a root of the script's own
//	$BASE        the argument of --build-context for a base image called base
//	$REGISTRY    a registry that says no: "missing/…" it does not know, "private/…" is for others, "secret/…" it does not give,
//	             "broken/…" is not well
//	$STEPTOOL    testdata/steptool, for steps
//	$FRONTEND    testdata/frontendtool, a frontend
//	$FOREIGN     the architecture of another processor; $FOREIGNTOOL is testdata/foreigntool for it, $NATIVETOOL for this machine's
func TestBuilds(t *testing.T) {
	stories(t, testscript.Params{Dir: "testdata/builds"}, func(*testscript.Env) error { return nil })
}

// stories runs stories of builds; setup does what some of them need besides.
func stories(t *testing.T, p testscript.Params, setup func(*testscript.Env) error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run as root: these tests make users, devices and file systems")
	}
	base := filepath.Join(t.TempDir(), "base")
	if err := kilntest.Base(base); err != nil {
		t.Fatal(err)
	}
	foreign := "arm64"
	if runtime.GOARCH == foreign {
		foreign = "amd64"
	}
	tools := map[string]string{}
	for _, tool := range [][2]string{
		{"steptool", runtime.GOARCH}, {"frontendtool", runtime.GOARCH}, {"foreigntool", runtime.GOARCH}, {"foreigntool", foreign},
	} {
		name := filepath.Join(filepath.Dir(base), tool[0]+"-"+tool[1])
		build := exec.Command("go", "build", "-o", name, "./testdata/"+tool[0])
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+tool[1])
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		tools[tool[0]+tool[1]] = name
	}
	// For stories of other users.
	if err := exec.Command("chmod", "-R", "a+rX", filepath.Dir(base)).Run(); err != nil {
		t.Fatal(err)
	}
	registry := httptest.NewServer(http.HandlerFunc(refuse))
	t.Cleanup(registry.Close)
	p.Setup = func(env *testscript.Env) error {
		env.Setenv("KILN_ROOT", filepath.Join(env.WorkDir, ".kiln"))
		env.Setenv("KILN_CONFIG", os.DevNull)
		env.Setenv("KILN_PROGRESS", "plain")
		env.Setenv("DOCKER_CONFIG", env.WorkDir)
		env.Setenv("BASE", "--build-context=base=oci-layout://"+base)
		env.Setenv("STEPTOOL", tools["steptool"+runtime.GOARCH])
		env.Setenv("FRONTEND", tools["frontendtool"+runtime.GOARCH])
		env.Setenv("FOREIGN", foreign)
		env.Setenv("FOREIGNTOOL", tools["foreigntool"+foreign])
		env.Setenv("NATIVETOOL", tools["foreigntool"+runtime.GOARCH])
		env.Setenv("REGISTRY", strings.TrimPrefix(registry.URL, "http://"))
		return setup(env)
	}
	p.Condition = func(name string) (bool, error) {
		if name != "emulators" { // in user namespaces
			return false, fmt.Errorf("unknown condition %q", name)
		}
		return !kilntest.Before(6, 7), nil
	}
	p.Cmds = map[string]func(*testscript.TestScript, bool, []string){
		"status":  cmdStatus,
		"ran":     cmdRan,
		"clean":   cmdClean,
		"signal":  cmdSignal,
		"disk":    cmdDisk,
		"replace": cmdReplace,
		"age":     cmdAge,
		"serve":   cmdServe,
		"github":  cmdGitHub,
	}
	// kiln ignores SIGHUP where it is started with that ignored, as by nohup.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	testscript.Run(t, p)
}

func refuse(w http.ResponseWriter, r *http.Request) {
	answer := func(status int, code string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"as the test wants it"}]}`, code)
	}
	switch {
	case r.URL.Path == "/v2/":
		w.WriteHeader(http.StatusOK)
	case strings.HasPrefix(r.URL.Path, "/v2/private/"):
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		answer(http.StatusUnauthorized, "UNAUTHORIZED")
	case strings.HasPrefix(r.URL.Path, "/v2/secret/"):
		answer(http.StatusForbidden, "DENIED")
	case strings.HasPrefix(r.URL.Path, "/v2/broken/"):
		answer(http.StatusBadRequest, "UNSUPPORTED")
	default:
		answer(http.StatusNotFound, "MANIFEST_UNKNOWN")
	}
}

var stepLine = regexp.MustCompile(`^#(\d+) \[(?:\S+ )?\d+/\d+\] (.*)$`)

// cmdRan is "ran REGEXP…": of the steps that the last command's progress shows, those that match, and no others, ran; the
// rest were cached. Each expression is for one step.
func cmdRan(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: ran REGEXP...")
	}
	steps, cached := map[string]string{}, map[string]bool{}
	for line := range strings.Lines(ts.ReadFile("stderr")) {
		line = strings.TrimSuffix(line, "\n")
		if m := stepLine.FindStringSubmatch(line); m != nil {
			steps[m[1]] = m[2]
		} else if number, what, _ := strings.Cut(line, " "); what == "CACHED" {
			cached[strings.TrimPrefix(number, "#")] = true
		}
	}
	var ran []string
	for number, name := range steps {
		if !cached[number] {
			ran = append(ran, name)
		}
	}
	slices.Sort(ran)
	left := slices.Clone(ran)
	for _, arg := range args {
		re, err := regexp.Compile(arg)
		ts.Check(err)
		i := slices.IndexFunc(left, re.MatchString)
		if i < 0 {
			ts.Fatalf("no step that matches %q ran, but %q", arg, ran)
		}
		left = slices.Delete(left, i, i+1)
	}
	if len(left) > 0 || len(steps) == 0 {
		ts.Fatalf("%q ran as well, of %d steps", left, len(steps))
	}
}

// cmdClean is "clean": kiln has left nothing unfinished in its root, no lock, no process and no mount.
func cmdClean(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: clean")
	}
	left, err := kilntest.Leftovers(ts.Getenv("KILN_ROOT"), ts.Getenv("WORK"))
	ts.Check(err)
	if len(left) > 0 {
		ts.Fatalf("left behind: %s", strings.Join(left, "\n"))
	}
}

// cmdSignal is "signal SIGNAL STATUS TEXT kiln ARG…": it runs kiln until it has printed TEXT, sends the signal, and wants
// that status, and no process left. SIGNAL is INT, TERM, HUP, KILL, or ^C, which is what a terminal sends.
func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: signal SIGNAL STATUS TEXT kiln ARG...")
	}
	sig := map[string]syscall.Signal{"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL, "^C": syscall.SIGINT}[args[0]]
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	program := args[3]
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if _, err := os.Stat(filepath.Join(dir, args[3])); err == nil {
			program = filepath.Join(dir, args[3])
			break
		}
	}
	cmd := exec.Command(program, args[4:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = os.Environ()
	for _, name := range []string{"KILN_ROOT", "KILN_CONFIG", "KILN_PROGRESS", "DOCKER_CONFIG", "WORK"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	r, w, err := os.Pipe()
	ts.Check(err)
	defer r.Close()
	cmd.Stderr = w
	ts.Check(cmd.Start())
	w.Close()
	watchdog := time.AfterFunc(kilntest.Hang, func() { cmd.Process.Kill() })
	defer watchdog.Stop()
	var seen bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), args[2]) {
		n, err := r.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			cmd.Process.Kill()
			cmd.Wait()
			ts.Fatalf("kiln ended before it said %q:\n%s", args[2], seen.String())
		}
	}
	running, err := kilntest.Marked(ts.Getenv("WORK")) // kiln itself, which for an ordinary user is two processes, among them
	ts.Check(err)
	if args[0] == "^C" {
		ts.Check(syscall.Kill(-cmd.Process.Pid, sig))
	} else {
		ts.Check(cmd.Process.Signal(sig))
	}
	go func() { // until every holder of the pipe is gone
		for {
			if _, err := r.Read(make([]byte, 4096)); err != nil {
				return
			}
		}
	}()
	err = cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		ts.Fatalf("%v", err)
	}
	if got := cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
	left, err := kilntest.WaitGone(running, ts.Getenv("WORK"))
	ts.Check(err)
	if len(left) > 0 {
		ts.Fatalf("left behind: %v", left)
	}
}

// cmdDisk is "disk DIR SIZE": a file system of that size, in memory, at DIR.
func cmdDisk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: disk DIR SIZE")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.Mkdir(dir, 0o700))
	ts.Check(syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+args[1]))
	ts.Defer(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// cmdReplace is "replace FILE OLD NEW": an edit that changes neither the file's size, if NEW has that of OLD, nor its time.
func cmdReplace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: replace FILE OLD NEW")
	}
	path := ts.MkAbs(args[0])
	info, err := os.Stat(path)
	ts.Check(err)
	old, err := os.ReadFile(path)
	ts.Check(err)
	if !bytes.Contains(old, []byte(args[1])) {
		ts.Fatalf("%s does not contain %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(path, bytes.Replace(old, []byte(args[1]), []byte(args[2]), 1), 0))
	ts.Check(os.Chtimes(path, info.ModTime(), info.ModTime()))
}

// cmdAge is "age DURATION PATH…": files, and those in directories, were last changed so much earlier than they were.
func cmdAge(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: age DURATION PATH...")
	}
	by, err := time.ParseDuration(args[0])
	ts.Check(err)
	for _, arg := range args[1:] {
		ts.Check(filepath.WalkDir(ts.MkAbs(arg), func(path string, e os.DirEntry, err error) error {
			if err != nil || e.Type()&os.ModeSymlink != 0 {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			old := info.ModTime().Add(-by)
			return os.Chtimes(path, old, old)
		}))
	}
}
