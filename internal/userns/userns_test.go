package userns

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain is also the program of TestRun: one that has itself started again many times, and what is started.
func TestMain(m *testing.M) {
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	switch {
	case Inside():
		os.Exit(7)
	case os.Getenv("USERNS_TEST_RUN") != "":
		os.Exit(runOften())
	}
	os.Exit(m.Run())
}

func runOften() int {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// execve(2) closes descriptors one after the other, and that by which StartProcess learns of it is one of the first. Only then
	// do the files of the process in /proc belong to its user.
	for range 10000 {
		if _, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 100); err != nil {
			break // there may be no more
		}
	}
	for range 200 {
		if status, err := Run(nil); err != nil || status != 7 {
			fmt.Fprintln(os.Stderr, status, err)
			return 1
		}
	}
	return 0
}

// A process whose memory nobody may read gives the one that it starts its ids, however long that takes to become another program.
func TestRun(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "USERNS_TEST_RUN=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestRanges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subuid")
	text := "# a remark\nother:100000:65536\nme:200000:1000\n1000:300000:10\nme:200500:10\nme:999:5\nme:bad:5\nme:1:0\nme:4294967290:100\nme:400000\nme : 1 : 1\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := ranges(file, []string{"1000", "me"})
	if err != nil {
		t.Fatal(err)
	}
	// What overlaps with another range or with the user's own id is left out.
	if got, want := without(list, 1000), []span{{200000, 1000}, {300000, 10}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if list, err := ranges(file+"-none", nil); err != nil || len(list) > 0 {
		t.Error(list, err)
	}
}

// Root is the caller, and the ranges follow without a gap.
func TestExtents(t *testing.T) {
	got := extents(1000, []span{{200000, 1000}, {300000, 10}, {400000, 1<<32 - 1 - 400000}})
	want := []extent{{0, 1000, 1}, {1, 200000, 1000}, {1001, 300000, 10}, {1011, 400000, 1<<32 - 1 - 400000}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	ns := Namespace{Nested: true, users: got[:3], groups: got[:1]}
	for id, exists := range map[uint32]bool{0: true, 1: true, 1010: true, 1011: false, 1<<32 - 1: false} {
		if ns.HasUser(id) != exists || ns.Check(id, 0) == nil != exists {
			t.Errorf("user %d: %v", id, !exists)
		}
	}
	if ns.HasGroup(1) || !ns.HasGroup(0) || ns.Single() || !(Namespace{}).HasUser(1<<31) || (Namespace{}).Single() {
		t.Error("the groups, or the first namespace")
	}
	passed := Namespace{Nested: true, users: []extent{{0, 0, 1000}, {1000, 200000, 10}}}
	if ns.MayBeRoot() || !(Namespace{}).MayBeRoot() || !passed.MayBeRoot() {
		t.Error("who may be root")
	}
	if many := extents(0, slices.Repeat([]span{{1, 1}}, 1000)); len(many) != maxExtents {
		t.Errorf("%d lines", len(many))
	}
}

// What tells the second kiln why there is one id comes through whole, or cut.
func TestText(t *testing.T) {
	for _, n := range []int{0, 1, maxText - 1, maxText, maxText + 1} {
		var b bytes.Buffer
		text := strings.Repeat("x", n)
		if err := send(&b, text); err != nil {
			t.Fatal(err)
		}
		if got, err := receive(&b); err != nil || got != text[:min(n, maxText)] {
			t.Errorf("%d bytes: %q, %v", n, got, err)
		}
	}
}

// The tests are root in the first namespace, where nothing is to be done.
func TestRoot(t *testing.T) {
	ns, err := Current()
	if err != nil || ns.Nested || ns.String() != "" || Needed() || Note() != "" || UID() != 0 || AsCaller(nil) != nil {
		t.Errorf("%+v, %v", ns, err)
	}
}
