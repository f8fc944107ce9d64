package rootdir

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestDoubts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run as root: this test gives files away")
	}
	top := t.TempDir() // below what is root's, or sticky
	// mode and owner; a symbolic link has a target in place of the mode
	type file struct {
		path     string
		mode     os.FileMode
		uid, gid int
		link     string
	}
	for _, tt := range []struct {
		name  string
		files []file
		dir   string
		uid   int
		want  []Doubt
	}{
		{"own", []file{{"a", 0o755, 0, 0, ""}}, "a/root", 0, nil},
		{"of a user", []file{{"a", 0o755, 1000, 1000, ""}}, "a/root", 1000, nil},
		{"of another", []file{{"a", 0o755, 1000, 1000, ""}, {"a/b", 0o700, 0, 0, ""}}, "a/b/root", 0, []Doubt{{"a", 1000}}},
		{"of two", []file{{"a", 0o755, 1000, 1000, ""}, {"a/b", 0o700, 1001, 0, ""}}, "a/b/root", 1000, []Doubt{{"a/b", 1001}}},
		{"writable", []file{{"a", 0o777, 0, 0, ""}}, "a/root", 0, []Doubt{{"a", -1}}},
		{"sticky", []file{{"a", 0o777 | os.ModeSticky, 0, 0, ""}}, "a/root", 0, nil},
		{"of another below sticky", []file{{"a", 0o777 | os.ModeSticky, 0, 0, ""}, {"a/b", 0o700, 1000, 0, ""}}, "a/b/root", 0, []Doubt{{"a/b", 1000}}},
		{"by a group", []file{{"a", 0o775, 0, 100, ""}}, "a/root", 0, []Doubt{{"a", -1}}},
		{"by root's group", []file{{"a", 0o775, 0, 0, ""}}, "a/root", 0, nil},
		{"by the owner's own group", []file{{"a", 0o775, 1000, 1000, ""}}, "a/root", 1000, nil},
		{"missing", []file{{"a", 0o777, 0, 0, ""}}, "a/b/c/root", 0, []Doubt{{"a", -1}}},
		{"the root directory itself", []file{{"a", 0o755, 0, 0, ""}, {"a/root", 0o777, 1000, 0, ""}}, "a/root", 0, nil},
		{"by a link", []file{{"a", 0o755, 0, 0, ""}, {"a/b", 0o777, 0, 0, ""}, {"l", 0, 0, 0, "a/b"}}, "l/root", 0, []Doubt{{"a/b", -1}}},
		{"by another's link", []file{{"a", 0o755, 0, 0, ""}, {"t", 0o777 | os.ModeSticky, 0, 0, ""}, {"t/l", 0, 1000, 0, "../a"}}, "t/l/root", 0,
			[]Doubt{{"t/l", 1000}}},
		{"by a link to the top", []file{{"a", 0o777, 0, 0, ""}, {"l", 0, 0, 0, "TOP/a"}}, "l/root", 0, []Doubt{{"a", -1}}},
		{"the root directory is a link", []file{{"a", 0o777, 0, 0, ""}, {"a/r", 0o700, 0, 0, ""}, {"l", 0, 0, 0, "a/r"}}, "l", 0, []Doubt{{"a", -1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(top, tt.name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, f := range tt.files {
				path := filepath.Join(dir, f.path)
				var err error
				if f.link != "" {
					target := f.link
					if rel, err := filepath.Rel("TOP", target); err == nil && rel != target && filepath.IsLocal(rel) {
						target = filepath.Join(dir, rel)
					}
					err = os.Symlink(target, path)
				} else if err = os.Mkdir(path, 0o700); err == nil {
					err = os.Chmod(path, f.mode)
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Lchown(path, f.uid, f.gid); err != nil {
					t.Fatal(err)
				}
			}
			got, err := Doubts(filepath.Join(dir, tt.dir), tt.uid)
			for i := range got {
				if got[i].Path, _ = filepath.Rel(dir, got[i].Path); got[i].String() == "" {
					t.Errorf("%+v says nothing", got[i])
				}
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
	loop := filepath.Join(top, "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	if got, err := Doubts(filepath.Join(loop, "root"), 0); err == nil {
		t.Errorf("a loop: %+v", got)
	}
}

// TestEnter holds that what is behind a relative name stays, whoever takes the path's place.
func TestEnter(t *testing.T) {
	top := t.TempDir()
	t.Chdir(top) // and back in the end
	dir := filepath.Join(top, "a", "root")
	if err := Enter(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(top, "a"), filepath.Join(top, "b")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(top, "b", "root", "f")); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]string{"f": filepath.Join(dir, "f"), filepath.Join(top, "x/y"): "x/y", "/x": "/x"} {
		if got := Shown(path); got != want {
			t.Errorf("%s is shown as %s, want %s", path, got, want)
		}
	}
	if err := Enter(filepath.Join(top, "b", "root", "f")); err == nil {
		t.Error("a file is entered")
	}
}
