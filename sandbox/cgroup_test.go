package sandbox

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// groups returns the control groups of that name, in every hierarchy.
func groups(t *testing.T, name string) []string {
	t.Helper()
	roots, err := hierarchies("/proc/self/mountinfo")
	if err != nil || len(roots) == 0 {
		t.Fatalf("hierarchies %q, %v", roots, err)
	}
	var out []string
	for _, root := range roots {
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
	in := func(s *Spec) { s.CgroupParent = "/" + parent }
	inside := make(chan []string, 1)
	roots, err := hierarchies("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	watch := writerFunc(func(p []byte) (int, error) {
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
		return len(p), nil
	})
	st, err := Run(context.Background(), Spec{Root: im.mount(t), Args: []string{"/bin/sh", "-c", "echo here; sleep 0.3"}, Env: []string{defaultPath}, User: root, CgroupParent: "/" + parent, Stdout: watch})
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
		t.Cleanup(func() { os.Remove(dir) })
		if err := os.WriteFile(filepath.Join(dir, "pids.max"), []byte("4"), 0); err == nil {
			limited = dir
		}
	}
	if limited == "" {
		t.Fatal("no hierarchy of this machine limits the number of processes")
	}
	out, _, err := im.sh(t, "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; echo all", in)
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

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
