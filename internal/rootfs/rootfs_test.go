package rootfs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// jail is a root with links that would like to lead out of it, to the file canary beside it.
func jail(t *testing.T) (r *Root, dir, canary string) {
	t.Helper()
	top := t.TempDir()
	canary = filepath.Join(top, "canary")
	dir = filepath.Join(top, "root")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(canary, []byte("outside"), 0o600), os.MkdirAll(filepath.Join(dir, "a/b"), 0o755),
		os.WriteFile(filepath.Join(dir, "a/b/file"), []byte("inside"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{
		"absolute": canary, "up": "../canary", "far": strings.Repeat("../", 50) + strings.TrimPrefix(canary, "/"), "dir": top, "a/deep": "../../canary",
		"proc": "/proc/self/root" + canary, "cwd": "/proc/self/cwd", "inner": "/a/b/file", "loop": "loop", "a/back": "..", "slash": "/",
	} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, dir, canary
}

func TestNothingLeadsOut(t *testing.T) {
	r, _, canary := jail(t)
	for _, name := range []string{
		"absolute", "up", "far", "dir/canary", "a/deep", "proc", "../canary", "/../canary", "a/../../canary", "a/back/../canary", canary, "slash/../canary",
		"a/b/../../../canary", "./../canary",
	} {
		f, err := r.OpenFile(name, unix.O_RDONLY, 0)
		if err == nil {
			text, _ := io.ReadAll(f)
			t.Errorf("OpenFile(%q) reads %q", name, text)
			f.Close()
		}
	}
	// ".." and absolute links stop at the root, and what is inside is found.
	for _, name := range []string{"a/b/file", "/a/b/file", "inner", "../../a/b/file", "slash/a/b/file", "a/back/a/b/file", "//a//b/./file"} {
		f, err := r.OpenFile(name, unix.O_RDONLY, 0)
		if err != nil {
			t.Errorf("OpenFile(%q) = %v", name, err)
			continue
		}
		if text, _ := io.ReadAll(f); string(text) != "inside" {
			t.Errorf("OpenFile(%q) reads %q", name, text)
		}
		f.Close()
	}
	if _, err := r.OpenFile("loop", unix.O_RDONLY, 0); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a loop of links is %v, want ELOOP", err)
	}
	for _, name := range []string{"inner", "a/back/a", "slash"} {
		if _, err := r.OpenNoSymlinks(name, unix.O_RDONLY, 0); !errors.Is(err, unix.ELOOP) {
			t.Errorf("OpenNoSymlinks(%q) = %v, want ELOOP", name, err)
		}
	}
}

// TestMagicLinks: the root may hold a proc file system, whose links lead anywhere.
func TestMagicLinks(t *testing.T) {
	r, err := Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, name := range []string{"self/root", "self/cwd", "self/exe", "self/fd/0", "thread-self/root/etc/passwd"} {
		f, err := r.OpenFile(name, unix.O_PATH, 0)
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, unix.ELOOP) {
			t.Errorf("OpenFile(%q) = %v, want ELOOP: it is a magic link", name, err)
		}
	}
}

func TestCreate(t *testing.T) {
	r, dir, canary := jail(t)
	// A file is made inside, wherever a link says.
	f, err := r.OpenFile("dir/new", unix.O_WRONLY|unix.O_CREAT, 0o640)
	if err == nil {
		f.Close()
		t.Error("a file is made behind a link whose target is not there inside")
	}
	f, err = r.OpenFile("a/back/new", unix.O_WRONLY|unix.O_CREAT, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := os.Lstat(filepath.Join(dir, "new")); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(canary); err != nil || string(text) != "outside" {
		t.Errorf("the file outside is %q, %v", text, err)
	}
}

func TestParent(t *testing.T) {
	r, dir, _ := jail(t)
	f, base, err := r.Parent("a/back/a/b/../x/")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if base != "x" {
		t.Errorf("the last component is %q", base)
	}
	var got, want unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &got), unix.Stat(filepath.Join(dir, "a"), &want)); err != nil || got.Ino != want.Ino {
		t.Errorf("the parent is another directory: %v", err)
	}
	for _, name := range []string{"", "/", ".", "..", "a/..", "a/.", "../"} {
		if f, _, err := r.Parent(name); !errors.Is(err, unix.EINVAL) {
			f.Close()
			t.Errorf("Parent(%q) = %v, want EINVAL", name, err)
		}
	}
}

func TestMkdirAll(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	r, dir, _ := jail(t)
	made, err := r.MkdirAll("a/back/x/y", 0o751)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/a/back/x", "/a/back/x/y"}; !slices.Equal(made, want) {
		t.Errorf("made %q, want %q", made, want)
	}
	for _, name := range []string{"x", "x/y"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o751 {
			t.Errorf("%s has mode %v, %v, whatever the umask", name, info, err)
		}
	}
	if made, err := r.MkdirAll("slash/x", 0o755); err != nil || len(made) > 0 {
		t.Errorf("MkdirAll of what is there made %q, %v", made, err)
	}
	if _, err := r.MkdirAll("a/b/file/x", 0o755); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("MkdirAll below a file = %v, want ENOTDIR", err)
	}
	// A link to a place that is not there inside: nothing may be made outside.
	top := filepath.Dir(dir)
	before, _ := os.ReadDir(top)
	if made, err := r.MkdirAll("dir/x", 0o755); err == nil {
		t.Logf("made %q inside", made)
	}
	if after, _ := os.ReadDir(top); len(after) != len(before) {
		t.Errorf("there is something new outside: %v", after)
	}
}
