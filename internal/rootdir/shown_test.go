package rootdir

import (
	"os"
	"path/filepath"
	"testing"
)

// Paths are shown as the user gave them, before and after the working directory is the root directory.
func TestShown(t *testing.T) {
	top := t.TempDir()
	t.Chdir(top)
	entered.start, entered.root, entered.given = top, "", nil
	entered.once.Do(func() {})
	given := []string{"ctx", "./Dockerfile", "../elsewhere", filepath.Join(top, "absolute"), ""}
	paths := append([]string(nil), given...)
	for i := range paths {
		if err := Absolute(&paths[i]); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		for i, want := range given {
			if got := Shown(paths[i]); got != want && want != "" {
				t.Errorf("%s is shown as %s, want %s", paths[i], got, want)
			}
		}
		for path, want := range map[string]string{
			paths[0] + "/sub/file": "ctx/sub/file", paths[2] + "/x": "../elsewhere/x", paths[3] + "/x": paths[3] + "/x",
			top + "/other": "other", "/etc/passwd": "/etc/passwd",
		} {
			if got := Shown(path); got != want {
				t.Errorf("%s is shown as %s, want %s", path, got, want)
			}
		}
	}
	check()
	if got := Shown("relative"); got != "relative" {
		t.Errorf("a relative path is shown as %s", got)
	}
	root := filepath.Join(top, "root")
	if err := Enter(root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { entered.root = "" })
	check()
	if got := Shown("tmp/process-1"); got != filepath.Join(root, "tmp/process-1") {
		t.Errorf("a path in the root directory is shown as %s", got)
	}
	if wd, err := os.Getwd(); err != nil || wd != root {
		t.Errorf("the working directory is %s, %v", wd, err)
	}
}
