package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeviceGuards holds both forms of the rules, that of version 1 and that of version 2, against the same commands, as far as the
// machine has both.
func TestDeviceGuards(t *testing.T) {
	all, err := machine()
	if err != nil {
		t.Fatal(err)
	}
	rules := []Device{{Kind: 'c', Major: 5, Minor: 2}, {Kind: 'c', Major: 136, Any: true}, {Kind: 'c', Major: 1, Minor: 3},
		{Kind: 'c', Major: 1, Minor: 5}, {Kind: 'c', Major: 10, Minor: 229}}
	found := 0
	for _, h := range all {
		if !h.unified && !slices.Contains(h.controllers, devicesController) {
			continue
		}
		found++
		c := &Groups{}
		t.Cleanup(func() { c.Remove() })
		if err := c.guard([]*hierarchy{h}, rules, Limits{}); err != nil {
			t.Fatalf("%s: %v", h.mount, err)
		}
		// EPERM is the guard's; ENXIO and ENODEV are of devices that are not there.
		cmd := exec.Command("sh", "-c", `cd "$1"; for d in "c 1 3" "c 1 5" "c 5 2" "c 136 0" "c 10 229" "c 1 11" "c 1 1" "c 5 1" "b 7 0" "b 1 3" "c 10 3"; do
			rm -f node; mknod node $d; dd if=node count=0 2>&1 | grep -q "Operation not permitted" && echo "$d"; done; :`, "sh", t.TempDir())
		procs, into, err := c.Join()
		if err != nil {
			t.Fatal(err)
		}
		if into != nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(into.Fd())}
		}
		for _, f := range procs {
			cmd.Args[2] = "echo 0 >&3; exec 3>&-; " + cmd.Args[2]
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
		out, err := cmd.CombinedOutput()
		if want := "c 1 11\nc 1 1\nc 5 1\nb 7 0\nb 1 3\nc 10 3\n"; err != nil || string(out) != want {
			t.Errorf("%s: %v, refused are\n%swant\n%s", h.mount, err, out, want)
		}
		for _, f := range procs {
			f.Close()
		}
	}
	if found == 0 {
		t.Error("the machine has no control groups that guard devices")
	}
}

// A group that a dead kiln left goes when the next one makes its first; that of a living one stays.
func TestSweep(t *testing.T) {
	all, err := hierarchies("/proc/self/mountinfo", "/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		if h.own == "" {
			continue
		}
		above := filepath.Join(h.own, "sweep-test")
		dead, alive := filepath.Join(above, groupPrefix+"00000000deadbeef"), filepath.Join(above, groupPrefix+"000000000000a11e")
		for _, dir := range []string{above, dead, alive} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(dir) })
		}
		f, err := os.Open(alive)
		if err == nil {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		if err != nil {
			t.Fatal(err)
		}
		sweep(above)
		if _, err := os.Stat(dead); err == nil {
			t.Errorf("%s was left", dead)
		}
		if _, err := os.Stat(alive); err != nil {
			t.Error(err)
		}
		f.Close()
	}
}

// TestCheck has limits that no machine can apply.
func TestCheck(t *testing.T) {
	for _, l := range []Limits{{Pids: -2}, {Memory: 100}, {MemorySwap: 1 << 30}, {Memory: 1 << 30, MemorySwap: 1 << 20}, {CPUShares: 1}, {CPUPeriod: 1}, {CPUQuota: 5},
		{CPUs: "a"}, {CPUs: "3-1"}, {Mems: "9999"}} {
		if err := l.Check(); err == nil {
			t.Errorf("%+v: no error", l)
		}
	}
}

// TestParent has runs that begin and end at once make and remove the same parent.
func TestParent(t *testing.T) {
	parent := fmt.Sprintf("/kiln-parent-test-%d/inner", os.Getpid())
	var runs sync.WaitGroup
	for range 4 {
		runs.Go(func() {
			for range 200 {
				c, err := New(Request{Parent: parent, Limits: Limits{Pids: -1}})
				if err != nil {
					t.Error(err)
					return
				}
				if err := c.Remove(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	runs.Wait()
	all, err := machine()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		if _, err := os.Stat(filepath.Join(h.mount, filepath.Dir(parent))); err == nil {
			t.Errorf("%s is left in %s", parent, h.mount)
		}
	}
}
