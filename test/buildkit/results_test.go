package main

import (
	"reflect"
	"strings"
	"testing"
)

// The output of a test binary, with ^ for the marker.
func read(t *testing.T, output string) (results, []string) {
	t.Helper()
	got := results{}
	culprits, err := got.read(strings.NewReader(strings.ReplaceAll(output, "^", marker)), &strings.Builder{})
	if err != nil {
		t.Fatal(err)
	}
	return got, culprits
}

func TestOutcomes(t *testing.T) {
	got, culprits := read(t, `^=== RUN   TestIntegration
^=== RUN   TestIntegration/TestA/worker=oci
^=== PAUSE TestIntegration/TestA/worker=oci
^=== RUN   TestIntegration/TestB/worker=oci
^=== CONT  TestIntegration/TestA/worker=oci
progress without an end of line^=== RUN   TestIntegration/TestA/worker=oci/sub
--- FAIL: TestIntegration/TestC/worker=oci (1.00s)
        ^--- FAIL: TestIntegration/TestA/worker=oci/sub (0.10s)
    ^--- FAIL: TestIntegration/TestA/worker=oci (0.20s)
    ^--- PASS: TestIntegration/TestB/worker=oci (0.20s)
^--- FAIL: TestIntegration (0.20s)
FAIL`)
	if len(culprits) > 0 {
		t.Errorf("culprits %q of a binary that did not panic", culprits)
	}
	if got, want := got.with(passed), []string{"TestIntegration/TestB/worker=oci"}; !reflect.DeepEqual(got, want) {
		t.Errorf("passed %q, want %q", got, want)
	}
	want := []string{"TestIntegration/TestA/worker=oci", "TestIntegration/TestA/worker=oci/sub"}
	if got := got.with(failed); !reflect.DeepEqual(got, want) {
		t.Errorf("failed %q, want %q", got, want)
	}
	if got := got.unfinished(); len(got) > 0 {
		t.Errorf("unfinished %q", got)
	}
}

// Two tests run; the first one panics.
func TestPanicInTest(t *testing.T) {
	got, culprits := read(t, `^=== RUN   TestIntegration
^=== RUN   TestIntegration/TestA/worker=oci
^=== RUN   TestIntegration/TestB/worker=oci
    ^--- PASS: TestIntegration/TestDone/worker=oci (0.20s)
    ^--- FAIL: TestIntegration/TestA/worker=oci (0.20s)
^--- FAIL: TestIntegration (0.20s)
panic: runtime error: invalid memory address or nil pointer dereference [recovered, repanicked]

goroutine 1234 [running]:
github.com/moby/buildkit/client.testA(0xc000, {0x1, 0x2})
`)
	for _, c := range culprits {
		if c != "TestA" {
			t.Errorf("culprit %s, want TestA", c)
		}
	}
	if len(culprits) == 0 {
		t.Error("nobody is to blame")
	}
	if got, want := got.unfinished(), []string{"TestB"}; !reflect.DeepEqual(got, want) {
		t.Errorf("unfinished %q, want %q", got, want)
	}
	if got, want := got.finished(), []string{"TestA", "TestDone"}; !reflect.DeepEqual(got, want) {
		t.Errorf("finished %q, want %q", got, want)
	}
}

// The panic is in a goroutine that a test has started.
func TestPanicInGoroutine(t *testing.T) {
	got, culprits := read(t, `^=== RUN   TestIntegration/TestHistoryError/worker=oci
^=== RUN   TestIntegration/TestB/worker=oci
panic: close of closed channel

goroutine 77 [running]:
github.com/moby/buildkit/frontend/dockerfile.testHistoryError.func2()
	/x/y.go:1
github.com/moby/buildkit/frontend/dockerfile.testB(0x1)
`)
	if want := []string{"TestHistoryError"}; !reflect.DeepEqual(culprits, want) {
		t.Errorf("culprits %q, want %q", culprits, want)
	}
	got.fail(culprits)
	if got, want := got.unfinished(), []string{"TestB"}; !reflect.DeepEqual(got, want) {
		t.Errorf("unfinished %q, want %q", got, want)
	}
}
