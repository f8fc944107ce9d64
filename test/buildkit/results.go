package main

import (
	"bufio"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// outcome is how a test ended.
type outcome string

const (
	passed  outcome = "PASS"
	failed  outcome = "FAIL"
	skipped outcome = "SKIP"
	running outcome = "" // it has begun
)

// results are the outcomes of tests by their names. A name is that of a function of BuildKit, the worker and perhaps what else
// varies, and perhaps a subtest: TestIntegration/TestNoCache/worker=oci/frontend=builtin.
type results map[string]outcome

// marker begins what the testing package itself prints with -test.v=test2json, wherever tests have left their line.
const marker = "\x16"

var (
	start = regexp.MustCompile(`^=== (?:RUN|NAME|CONT) +(\S+)$`)
	end   = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+) \(`)
	// panicking are the functions of tests in the stack of the goroutine that brought the test binary down.
	panicking = regexp.MustCompile(`(?:frontend/dockerfile|buildkit/client)\.test(\w+?)(?:\.|\()`)
)

// read adds the outcomes that the output of a test binary tells of, and copies it to log, without markers. If the binary panicked, it
// returns the names of the functions whose test did it.
func (r results) read(output io.Reader, log io.Writer) (culprits []string, err error) {
	in := bufio.NewReaderSize(output, 1<<20)
	stack, last := false, ""
	for {
		line, err := in.ReadString('\n')
		_, printed, marked := strings.Cut(line, marker)
		if !marked {
			printed = line
		}
		text := strings.TrimRight(printed, "\n")
		if m := end.FindStringSubmatch(text); m != nil && marked {
			if r[m[2]] != failed { // a panic may say so before
				r[m[2]] = outcome(m[1])
			}
			if m[1] == string(failed) && strings.Count(m[2], "/") > strings.Count(last, "/") {
				last = m[2]
			}
		} else if m := start.FindStringSubmatch(text); m != nil && marked {
			if _, ok := r[m[1]]; !ok {
				r[m[1]] = running
			}
			last = ""
		} else if strings.HasPrefix(text, "panic: ") || strings.HasPrefix(text, "fatal error: ") {
			stack = true
			if last != "" {
				culprits = append(culprits, function(last))
			}
		} else if m := panicking.FindStringSubmatch(text); stack && m != nil {
			culprits = append(culprits, "Test"+m[1])
			stack = false
		}
		if _, werr := io.WriteString(log, strings.ReplaceAll(line, marker, "")); werr != nil {
			return nil, werr
		}
		if err == io.EOF {
			return culprits, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// function returns the name of the function that a test runs, or "" for one of the tests around all.
func function(name string) string {
	parts := strings.Split(name, "/")
	if len(parts) < 2 {
		return ""
	}
	return parts[1]
}

// isEntry reports whether a test is one that the lists have.
func isEntry(name string) bool { return strings.Contains(name, "/worker=oci") }

// ended returns how many tests have ended.
func (r results) ended() int {
	n := 0
	for _, o := range r {
		if o != running {
			n++
		}
	}
	return n
}

// unfinished returns the functions with a test that has begun and not ended.
func (r results) unfinished() []string {
	found := map[string]bool{}
	for name, o := range r {
		if o == running && isEntry(name) {
			found[function(name)] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// finished returns the functions of which all tests that began have ended.
func (r results) finished() []string {
	found := map[string]bool{}
	for name := range r {
		if isEntry(name) {
			found[function(name)] = true
		}
	}
	for _, f := range r.unfinished() {
		delete(found, f)
	}
	return slices.Sorted(maps.Keys(found))
}

// fail says that the tests of functions that have not ended failed.
func (r results) fail(functions []string) {
	for name, o := range r {
		if o == running && slices.Contains(functions, function(name)) {
			r[name] = failed
		}
	}
}

// with returns the entries with an outcome, sorted.
func (r results) with(o outcome) []string {
	var names []string
	for name, got := range r {
		if got == o && isEntry(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
