package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// run runs the tests that are asked for and compares the outcomes with the lists.
func (r request) run(ctx context.Context, c cache) error {
	e, err := r.surroundings(ctx, c)
	if err != nil {
		return err
	}
	start := time.Now()
	got, runErr := r.all(ctx, e)
	if runErr == nil && r.against == "kilnd" {
		runErr = r.again(ctx, e, got)
	}
	mounts, err := e.remove()
	if err := errors.Join(runErr, err); err != nil {
		return err
	}
	fmt.Printf("%s against %s: %d passed, %d failed, %d skipped in %s; what they printed is in %s\n", r.suite.name, r.against,
		len(got.with(passed)), len(got.with(failed)), len(got.with(skipped)), time.Since(start).Round(time.Second), e.log)
	if len(mounts) > 0 {
		fmt.Printf("mounts that were left: %s\n", strings.Join(mounts, " "))
	}
	if err := r.compare(got); err != nil {
		return err
	}
	if len(mounts) > 0 && r.against == "kilnd" {
		return errors.New("kilnd left mounts behind")
	}
	return nil
}

// compare reports what is new and what is missing.
func (r request) compare(got results) error {
	pass := got.with(passed)
	for _, name := range got.with(failed) {
		fmt.Println("failed:", name)
	}
	if r.want != "" {
		want, err := readList(r.want)
		if err != nil {
			return err
		}
		missing := r.missing(want, pass)
		fmt.Printf("%d of %s did not pass\n", len(missing), r.want)
		for _, name := range missing {
			fmt.Println("wanted:", name)
		}
	}
	hollow, err := readList(r.suite.hollow())
	if err != nil {
		return err
	}
	if r.against == "nothing" {
		fmt.Println("a server that does nothing passes:")
		for _, name := range pass {
			fmt.Println("  ", name)
		}
		if r.update {
			return addToList(r.suite.hollow(), pass)
		}
		return nil
	}
	n := len(slices.DeleteFunc(slices.Clone(pass), func(name string) bool { return !slices.Contains(hollow, name) }))
	fmt.Printf("%d pass, of which a server that does nothing would pass %d\n", len(pass), n)
	if r.against != "kilnd" {
		return nil
	}
	list, err := readList(r.suite.passes())
	if err != nil {
		return err
	}
	for _, name := range r.missing(pass, list) {
		fmt.Println("new:", name)
	}
	missing := r.missing(list, pass)
	for _, name := range missing {
		fmt.Println("LOST:", name)
	}
	if r.update {
		if err := addToList(r.suite.passes(), pass); err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%d tests failed that passed before", len(missing))
	}
	return nil
}

// maxAgain is how many tests run a second time: more do not fail for what runs beside them.
const maxAgain = 20

// again runs the tests a second time that failed and are on the list. Some of BuildKit's wait for a fixed time, which is not enough on
// every machine while others run beside them.
func (r request) again(ctx context.Context, e environment, got results) error {
	list, err := readList(r.suite.passes())
	if err != nil {
		return err
	}
	lost := r.missing(list, got.with(passed))
	if len(lost) == 0 || len(lost) > maxAgain {
		return nil
	}
	var functions []string
	for _, name := range lost {
		functions = append(functions, function(name))
	}
	slices.Sort(functions)
	r.filter = regexp.MustCompile("^(" + strings.Join(slices.Compact(functions), "|") + ")$")
	second, err := r.all(ctx, e)
	if err != nil {
		return err
	}
	for _, name := range lost {
		if second[name] == passed {
			fmt.Println("passed the second time:", name)
			got[name] = passed
		}
	}
	return nil
}

// missing returns the tests of want that ran by the filter and are not in got.
func (r request) missing(want, got []string) []string {
	return slices.DeleteFunc(slices.Clone(want), func(name string) bool {
		return slices.Contains(got, name) || !r.filter.MatchString(function(name))
	})
}

// all runs the test binary until every test has ended: a test that panics takes those with it that run beside it.
func (r request) all(ctx context.Context, e environment) (results, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.timeout, errTimeout)
	defer cancel()
	log, err := os.OpenFile(e.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	var out io.Writer = log
	if r.verbose {
		out = io.MultiWriter(log, os.Stdout)
	}
	got := results{}
	var skip []string
	for {
		before := got.ended()
		culprits, failure, err := r.once(ctx, e, got, skip, out)
		if errors.Is(err, errTimeout) {
			hung := got.unfinished()
			fmt.Printf("the tests did not end within %s; these were killed: %s\n", r.timeout, strings.Join(hung, ", "))
			got.fail(hung)
			return got, nil
		}
		if err != nil {
			return nil, err
		}
		if len(got.unfinished()) == 0 && len(culprits) == 0 {
			if len(got) == 0 && failure != nil {
				return nil, fmt.Errorf("%s: %w; see %s", e.binary, failure, e.log)
			}
			return got, nil
		}
		// The binary ended in the middle. If it does not say by which test, all that ran may be to blame.
		if culprits = slices.DeleteFunc(culprits, func(s string) bool { return s == "" }); len(culprits) == 0 {
			culprits = got.unfinished()
		}
		slices.Sort(culprits)
		fmt.Printf("the test binary ended by %s: the others run again\n", strings.Join(slices.Compact(culprits), ", "))
		got.fail(culprits)
		if got.ended() == before {
			return nil, fmt.Errorf("%s ended without a result; see %s", e.binary, e.log)
		}
		skip = append(got.finished(), culprits...)
	}
}

// errTimeout is the cause of the end of tests that take too long.
var errTimeout = errors.New("the tests did not end in time")

// once runs the test binary, without the functions of skip. The failure that it returns is that of the binary.
func (r request) once(
	ctx context.Context, e environment, got results, skip []string, log io.Writer,
) (culprits []string, failure, err error) {
	args := []string{"-test.v=test2json", "-test.timeout=0", "-test.run=" + r.suite.pattern(r.filter.String())}
	if len(skip) > 0 {
		args = append(args, "-test.skip=.*/^("+strings.Join(skip, "|")+")$")
	}
	cmd := exec.CommandContext(ctx, e.binary, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Dir, cmd.Env = e.dir, e.env
	in, out, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(err, in.Close(), out.Close())
	}
	out.Close()
	read := make(chan error, 1)
	go func() {
		var err error
		culprits, err = got.read(in, log)
		read <- err
	}()
	failure = cmd.Wait()
	killChildren() // they may hold the pipe
	err = errors.Join(<-read, in.Close(), context.Cause(ctx))
	return culprits, failure, err
}

// environment is what the tests of one run have around them.
type environment struct {
	tmp    string
	log    string
	binary string
	dir    string
	env    []string
}

// maxTmp limits the path of a run's directory: a socket below it has a path of 107 bytes at most.
const maxTmp = 32

// surroundings makes what the tests of a run need, in a directory of its own.
func (r request) surroundings(ctx context.Context, c cache) (e environment, err error) {
	if e.binary, err = c.binary(ctx, r.suite.binary); err != nil {
		return e, err
	}
	programs := map[string]string{}
	if programs["buildctl"], err = c.binary(ctx, "buildctl"); err != nil {
		return e, err
	}
	if programs["registry"], err = exec.LookPath("docker-registry"); err != nil {
		return e, err
	}
	if programs["buildkitd"], err = r.server(ctx, c); err != nil {
		return e, err
	}
	frontend := ""
	if strings.Contains(r.suite.env, "FRONTEND") && strings.Contains(r.suite.env, "local:") {
		if frontend, err = c.frontend(ctx); err != nil {
			return e, err
		}
	}
	mirror, err := c.mirror(ctx)
	if err != nil {
		return e, err
	}
	if e.dir, err = moduleDir(ctx, r.suite.dir); err != nil {
		return e, err
	}
	if err := adoptOrphans(); err != nil {
		return e, err
	}
	if e.tmp, err = os.MkdirTemp("", "ks"); err != nil {
		return e, err
	}
	if len(e.tmp) > maxTmp {
		return e, fmt.Errorf("%s: the path of $TMPDIR is too long by %d bytes for sockets below it", e.tmp, len(e.tmp)-maxTmp)
	}
	if err := removeOldLogs(c.top); err != nil {
		return e, err
	}
	e.log = fmt.Sprintf("%s/log-%s-%s-%d", c.top, r.suite.name, r.against, os.Getpid())
	for _, name := range []string{"bin", "home", "t"} {
		if err := os.Mkdir(filepath.Join(e.tmp, name), 0o755); err != nil {
			return e, err
		}
	}
	for name, path := range programs {
		if err := os.Symlink(path, filepath.Join(e.tmp, "bin", name)); err != nil {
			return e, err
		}
	}
	// Tests push to the mirror.
	if err := command(ctx, e.tmp, nil, "cp", "--archive", mirror, "mirror"); err != nil {
		return e, err
	}
	e.env = append(os.Environ(),
		"PATH="+filepath.Join(e.tmp, "bin")+":"+os.Getenv("PATH"),
		"HOME="+filepath.Join(e.tmp, "home"),
		"TMPDIR="+filepath.Join(e.tmp, "t"),
		"BUILDKIT_REGISTRY_MIRROR_DIR="+filepath.Join(e.tmp, "mirror"),
	)
	if r.suite.env != "" {
		e.env = append(e.env, strings.ReplaceAll(r.suite.env, "local:FRONTEND", "local:"+frontend))
	}
	return e, nil
}

// server returns the program that is started as buildkitd.
func (r request) server(ctx context.Context, c cache) (string, error) {
	switch {
	case r.against == "buildkitd":
		return c.binary(ctx, "buildkitd")
	case r.against == "nothing":
		path := filepath.Join(c.made, "bin/nothing")
		return path, command(ctx, source(), []string{"CGO_ENABLED=0"}, "go", "build", "-o", path, "./nothing")
	case r.kilnd != "":
		return filepath.Abs(r.kilnd)
	}
	return c.kiln(ctx, "kilnd")
}

// moduleDir returns a directory of BuildKit's module in the module cache.
func moduleDir(ctx context.Context, dir string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/buildkit")
	cmd.Dir = source()
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find BuildKit's module: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), dir), nil
}

// removeOldLogs removes the logs of runs that ended more than a week ago.
func removeOldLogs(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "log-*"))
	if err != nil {
		return err
	}
	for _, name := range logs {
		// Another run may remove it as well.
		if info, err := os.Stat(name); err == nil && time.Since(info.ModTime()) > 7*24*time.Hour {
			os.Remove(name)
		}
	}
	return nil
}
