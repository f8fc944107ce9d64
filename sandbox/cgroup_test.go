package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// hierarchyMounts are where control groups are mounted.
func hierarchyMounts(t *testing.T) (out []string) {
	t.Helper()
	for line := range strings.Lines(readFile(t, "/proc/self/mountinfo")) {
		f := strings.Fields(line)
		i := slices.Index(f, "-")
		if f[i+1] == "cgroup2" || f[i+1] == "cgroup" && !strings.Contains(f[i+3], "name=") {
			out = append(out, f[4])
		}
	}
	if len(out) == 0 {
		t.Fatal("no control groups are mounted")
	}
	return out
}

// groups returns the control groups of that name, in every hierarchy.
func groups(t *testing.T, name string) []string {
	t.Helper()
	var out []string
	for _, root := range hierarchyMounts(t) {
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			out = append(out, filepath.Join(root, name))
		}
	}
	return out
}

// What a step starts is in a group of its own below the parent that was asked for, which holds it to the parent's limits;
// and that group is gone afterwards.
func TestCgroupParent(t *testing.T) {
	im := newImage(t)
	const parent = "kiln-test-parent"
	in := func(s *Spec) { s.Resources.CgroupParent = "/" + parent }
	inside := make(chan []string, 1)
	roots := hierarchyMounts(t)
	watch := whileRunning(func() {
		var found []string
		for _, root := range roots {
			members, _ := filepath.Glob(filepath.Join(root, parent, "kiln-*", "cgroup.procs"))
			for _, m := range members {
				if data, err := os.ReadFile(m); err == nil && len(strings.Fields(string(data))) > 0 {
					found = append(found, root)
				}
			}
		}
		inside <- found
	})
	st, err := Run(context.Background(), Spec{Root: im.mount(t), Process: Process{Args: []string{"/bin/sh", "-c", flood}, Env: []string{defaultPath}, User: root}, Resources: Resources{CgroupParent: "/" + parent}, Stdio: Stdio{Stdout: watch}})
	if err != nil || st.ExitCode != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	if got := <-inside; strings.Join(got, " ") != strings.Join(roots, " ") {
		t.Errorf("the process was in groups of %q, want %q", got, roots)
	}
	if left := groups(t, parent); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}

	// A parent that is there stays, and its limit holds.
	var limited string
	for _, root := range roots {
		dir := filepath.Join(root, parent)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+pids"), 0) // of version 2 alone
		t.Cleanup(func() { os.Remove(dir) })
		if err := os.WriteFile(filepath.Join(dir, "pids.max"), []byte("4"), 0); err == nil {
			limited = dir
		}
	}
	if limited == "" {
		t.Fatal("no hierarchy of this machine limits the number of processes")
	}
	out, _, err := im.sh(t, "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all", in)
	if err != nil || !strings.Contains(out, "fork") || strings.Contains(out, "all") {
		t.Errorf("the limit was not applied: %v\n%s", err, out)
	}
	err = filepath.WalkDir(limited, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && p != limited {
			t.Errorf("left behind: %s", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// flood is a script that writes more than a pipe holds: it does not end before its output is read.
const flood = "head -c 1000000 /dev/zero"

// whileRunning returns a writer for the output of flood that calls f once, while the script cannot end.
func whileRunning(f func()) io.Writer { return &watcher{f: f} }

type watcher struct {
	once sync.Once
	f    func()
}

func (w *watcher) Write(p []byte) (int, error) {
	w.once.Do(w.f)
	return len(p), nil
}

// available reports whether this machine has a controller that kiln can use.
func available(t *testing.T, controller string) bool {
	t.Helper()
	for _, root := range hierarchyMounts(t) {
		list, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err != nil { // version 1, where the root has the controller's files and is mounted by its name
			list = []byte(strings.ReplaceAll(filepath.Base(root), ",", " "))
		}
		if slices.Contains(strings.Fields(string(list)), controller) {
			return true
		}
	}
	t.Logf("this machine has no controller %s", controller)
	return false
}

func limits(l Limits) func(*Spec) { return func(s *Spec) { s.Resources.Limits = l } }

// A step that starts processes without end is stopped, and there always is a limit.
func TestForkBomb(t *testing.T) {
	im := newImage(t)
	if !available(t, "pids") {
		return
	}
	out, st, err := im.sh(t, "i=0; while [ $i -lt 100 ]; do sleep 1000 & i=$((i+1)); done; echo all", limits(Limits{Pids: 50}))
	if err != nil || strings.Contains(out, "all\n") || st.ExitCode == 0 || st.PidsRefused == 0 {
		t.Errorf("%+v, %v\n%.200s", st, err, out)
	}
	if _, st, err := im.sh(t, "true"); err != nil || st.NoPidsLimit != nil {
		t.Errorf("no limit: %v, %v", err, st.NoPidsLimit)
	}
	im.expect(t, "i=0; while [ $i -lt 60 ]; do sleep 1000 & i=$((i+1)); done; echo all", "all\n", limits(Limits{Pids: -1}))
}

// What holds is read in the group while the step is in it.
func TestLimits(t *testing.T) {
	im := newImage(t)
	// Other kilns of the machine have groups of their own elsewhere.
	parent := fmt.Sprintf("kiln-limits-test-%d", os.Getpid())
	for _, c := range []struct {
		controller string
		limits     Limits
		want       map[string]string // by file; of version 1 and 2
	}{
		{"pids", Limits{}, map[string]string{"pids.max": "4096"}},
		{"pids", Limits{Pids: 77}, map[string]string{"pids.max": "77"}},
		{"memory", Limits{Memory: 64<<20 + 1}, map[string]string{"memory.limit_in_bytes": "67108864", "memory.max": "67108864", "memory.swap.max": "67108864"}},
		{"memory", Limits{Memory: 64 << 20, MemorySwap: 64 << 20}, map[string]string{"memory.memsw.limit_in_bytes": "67108864", "memory.swap.max": "0"}},
		{"cpu", Limits{CPUShares: 512}, map[string]string{"cpu.shares": "512", "cpu.weight": "20"}},
		{"cpu", Limits{CPUQuota: 50000}, map[string]string{"cpu.cfs_quota_us": "50000", "cpu.max": "50000 100000"}},
		{"cpu", Limits{CPUQuota: 5000, CPUPeriod: 20000}, map[string]string{"cpu.cfs_quota_us": "5000", "cpu.cfs_period_us": "20000", "cpu.max": "5000 20000"}},
		{"cpuset", Limits{CPUs: "0"}, map[string]string{"cpuset.cpus": "0"}},
		{"cpuset", Limits{Mems: "0"}, map[string]string{"cpuset.mems": "0"}},
	} {
		if !available(t, c.controller) {
			continue
		}
		var found []string
		look := whileRunning(func() {
			for _, root := range hierarchyMounts(t) {
				for file, want := range c.want {
					files, _ := filepath.Glob(filepath.Join(root, parent, "kiln-*", file))
					for _, name := range files {
						got := strings.TrimSpace(readFile(t, name))
						if procs := readFile(t, filepath.Join(filepath.Dir(name), "cgroup.procs")); got == want && procs != "" {
							found = append(found, file)
						} else {
							t.Errorf("%+v: %s is %q, want %q, for processes %q", c.limits, file, got, want, procs)
						}
					}
				}
			}
		})
		_, st, err := im.sh(t, flood, limits(c.limits), func(s *Spec) { s.Stdio.Stdout, s.Resources.CgroupParent = look, parent })
		if err != nil || st.ExitCode != 0 || len(found) == 0 {
			t.Errorf("%+v: %+v, %v, found %q", c.limits, st, err, found)
		}
	}
	if available(t, "memory") {
		_, st, err := im.sh(t, "dd if=/dev/zero of=/dev/null bs=200M count=1", limits(Limits{Memory: 32 << 20, MemorySwap: 32 << 20}))
		if err != nil || st.ExitCode == 0 || st.OOMKills == 0 {
			t.Errorf("too much memory: %+v, %v", st, err)
		}
	}
	if available(t, "cpuset") {
		im.expect(t, "nproc", "1\n", limits(Limits{CPUs: "0"}))
		var e *LimitError
		if _, _, err := im.sh(t, "nproc", limits(Limits{CPUs: "0,4000"})); !errors.As(err, &e) {
			t.Errorf("a processor that is not there: %v", err)
		}
	}
	if left := groups(t, parent); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestPool has runs after each other use the same groups, which are gone when the pool is closed. A run that asks for more gets its
// own, and one that may do more is never where one is that may do less.
func TestPool(t *testing.T) {
	im := newImage(t)
	var pool Pool
	from := func(s *Spec) { s.Resources.Pool = &pool }
	// A device that no machine has.
	const node = `mknod /tmp/n c 10 4; dd if=/tmp/n count=0 2>&1 | grep -o "No such device\|not permitted"; rm /tmp/n`
	im.expect(t, node, "not permitted\n", from)
	kept := own(t)
	if len(kept) == 0 {
		t.Fatal("the pool has no groups")
	}
	im.expect(t, "cat < /dev/null", "", from, func(s *Spec) { s.Resources.Limits.Pids = 10 })
	im.expect(t, node, "No such device\n", from, insecure)
	both := own(t)
	im.expect(t, node, "not permitted\n", from)
	if now := own(t); !slices.Equal(now, both) || !slices.ContainsFunc(both, func(g string) bool { return g == kept[0] }) {
		t.Errorf("the pool had %q, %q after other runs, and now %q", kept, both, now)
	}
	if err := pool.Close(); err != nil {
		t.Error(err)
	}
	if left := own(t); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

// TestManagesGroups has a run with all privileges make groups of its own, in each hierarchy in which kiln can, and leave none.
func TestManagesGroups(t *testing.T) {
	im := newImage(t)
	const script = `for f in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
		[ ! -e $f ] || mkdir ${f%/*}/a ${f%/*}/a/b || echo "none in ${f%/*}"
	done
	[ ! -e /sys/fs/cgroup/cpuset ] || ls -d /sys/fs/cgroup/cpuset/a`
	want := ""
	if _, err := os.Stat("/sys/fs/cgroup/cpuset/cgroup.procs"); err == nil && available(t, "cpuset") {
		want = "/sys/fs/cgroup/cpuset/a\n"
	}
	im.expect(t, script, want, insecure)
	if left := own(t); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

// own returns the control groups that this process has made.
func own(t *testing.T) (out []string) {
	t.Helper()
	for _, root := range hierarchyMounts(t) {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() || !strings.HasPrefix(d.Name(), "kiln-") {
				return nil
			}
			// Whoever made a group has a lock on it, which the kernel lists.
			var st unix.Stat_t
			if err := unix.Stat(p, &st); err != nil {
				return nil
			}
			for line := range strings.Lines(readFile(t, "/proc/locks")) {
				f := strings.Fields(line)
				if f[4] == strconv.Itoa(os.Getpid()) && strings.HasSuffix(f[5], fmt.Sprintf(":%d", st.Ino)) {
					out = append(out, p)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestOwnGroup shows a step its own control groups and no others, with the limits that it has, whatever privileges it has: also if it takes
// away what it can.
func TestOwnGroup(t *testing.T) {
	const script = `cd /sys/fs/cgroup; cat memory.max memory/memory.limit_in_bytes pids.max pids/pids.max 2> /dev/null
		find . -type d -name 'kiln-*'; find . -type d | grep -v -x '[.]/[a-z,_]*\|[.]'; 
		for f in pids.max pids/pids.max; do [ -e $f ] && echo 76 2> /dev/null > $f && echo writable; done
		cd /; while umount /sys/fs/cgroup/* /sys/fs/cgroup 2> /dev/null; do :; done; find /sys/fs/cgroup -mindepth 2 -type d -name 'kiln-*'`
	if !available(t, "memory") || !available(t, "pids") {
		return
	}
	confined(t, func(t *testing.T, c confinement, im image) {
		want := "67108864\n77\n"
		if c.insecure && !c.ids { // root on the host may change its limits, as it may everything
			want += "writable\n"
		}
		out, st, err := im.sh(t, script, c.spec, limits(Limits{Memory: 64 << 20, Pids: 77}))
		if err != nil || out != want {
			t.Errorf("%+v, %v\n%s", st, err, out)
		}
	})
}
