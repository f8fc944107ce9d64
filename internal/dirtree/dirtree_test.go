package dirtree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fewFiles lets the process have only some more descriptors than it has.
func fewFiles(t *testing.T) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: uint64(len(entries) + maxOpen + 16), Max: before.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
}

// nest makes directories in each other below dir, and calls f with the descriptor of each.
func nest(t *testing.T, dir string, depth int, f func(level, fd int)) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range depth {
		if f != nil {
			f(i, fd)
		}
		if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		below, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = below
	}
	unix.Close(fd)
}

func touch(t *testing.T, dir int, name string) {
	t.Helper()
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}

func TestRemoveDeep(t *testing.T) {
	tmp := t.TempDir()
	tree := filepath.Join(tmp, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	// Names such as the removal itself uses are names like any other.
	nest(t, tree, 5000, func(level, fd int) {
		if level%10 == 0 {
			for _, name := range []string{"1", ".kiln-removes-0", "x"} {
				if err := unix.Mkdirat(fd, name, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			touch(t, fd, "x/1")
		}
	})
	fewFiles(t)
	if err := Remove(tree); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestRemove(t *testing.T) {
	tmp := t.TempDir()
	for _, tt := range []struct {
		name string
		make func(path string) error
	}{
		{"nothing", func(string) error { return nil }},
		{"a file", func(p string) error { return os.WriteFile(p, nil, 0o400) }},
		{"a link to a directory", func(p string) error { return os.Symlink(tmp, p) }},
		{"a fifo", func(p string) error { return unix.Mkfifo(p, 0o600) }},
		{"an empty directory", func(p string) error { return os.Mkdir(p, 0) }},
		{"many files", func(p string) error {
			err := os.Mkdir(p, 0o700)
			for i := 0; err == nil && i < 5000; i++ {
				err = os.WriteFile(filepath.Join(p, fmt.Sprint(i)), nil, 0o600)
			}
			return err
		}},
		{"links in a directory", func(p string) error {
			return errors.Join(os.Mkdir(p, 0o700), os.Symlink("/etc", p+"/l"), os.Symlink(".", p+"/m"), unix.Mkfifo(p+"/f", 0))
		}},
	} {
		path := filepath.Join(tmp, "x")
		if err := tt.make(path); err != nil {
			t.Fatal(err)
		}
		if err := Remove(path); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
			t.Fatalf("%s: left %v, %v", tt.name, left, err)
		}
	}
	if err := Remove(filepath.Join(tmp, "no", "such")); err != nil {
		t.Error(err)
	}
}

// As another user than root permissions count.
func TestRemoveWithoutPermission(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	tmp, err := os.MkdirTemp("/tmp", "dirtree-")
	if err != nil {
		t.Fatal(err)
	}
	defer Remove(tmp)
	tree := filepath.Join(tmp, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	nest(t, tree, 3*maxOpen, func(_, fd int) { touch(t, fd, "f") })
	d := NewDescent(open(t, tree))
	var down func(level int)
	down = func(level int) {
		if err := unix.Fchown(d.Fd(), 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if level < 3*maxOpen {
			if err := d.Enter("d"); err != nil {
				t.Fatal(err)
			}
			down(level + 1)
			if err := d.Leave(); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Fchmod(d.Fd(), 0o500*uint32(level%2)); err != nil {
			t.Fatal(err)
		}
	}
	down(0)
	d.Close()
	if err := os.Chown(tmp, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		if err := Remove(tree); err != nil {
			t.Error(err)
		}
	})
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// What belongs to others stays, and the error names it; the rest goes.
func TestRemoveFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	tmp, err := os.MkdirTemp("/tmp", "dirtree-")
	if err != nil {
		t.Fatal(err)
	}
	defer Remove(tmp)
	for _, err := range []error{
		os.MkdirAll(filepath.Join(tmp, "tree/foreign/below"), 0o755), os.Mkdir(filepath.Join(tmp, "tree/own"), 0o755),
		os.WriteFile(filepath.Join(tmp, "tree/own/file"), nil, 0o600), os.WriteFile(filepath.Join(tmp, "tree/foreign/file"), nil, 0o600),
		os.Chown(tmp, 65534, 65534), os.Chown(filepath.Join(tmp, "tree"), 65534, 65534), os.Chown(filepath.Join(tmp, "tree/own"), 65534, 65534),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	asNobody(t, func() { err = Remove(filepath.Join(tmp, "tree")) })
	failed, ok := errors.AsType[*RemoveError](err)
	if !ok || failed.More != 1 || !strings.HasPrefix(failed.Path, filepath.Join(tmp, "tree/foreign/")) || !errors.Is(err, unix.EACCES) {
		t.Errorf("error %v", err)
	}
	left, err := os.ReadDir(filepath.Join(tmp, "tree"))
	if err != nil || len(left) != 1 || left[0].Name() != "foreign" {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestRemoveImmutable(t *testing.T) {
	tmp := t.TempDir()
	tree := filepath.Join(tmp, "tree")
	if err := errors.Join(os.MkdirAll(filepath.Join(tree, "dir"), 0o755), os.WriteFile(filepath.Join(tree, "dir/file"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dir/file", "dir", ""} {
		f := open(t, filepath.Join(tree, name))
		err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutable)
		f.Close()
		if err != nil {
			t.Skipf("no file can be made immutable here: %v", err)
		}
	}
	if err := Remove(tree); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(tree); err == nil {
		t.Error("it is still there")
	}
}

// The directory that a name is removed from stays as it is.
func TestRemoveAtLeavesTheDirectory(t *testing.T) {
	tmp := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(tmp, "file"), nil, 0o644), os.Chmod(tmp, 0o751)); err != nil {
		t.Fatal(err)
	}
	f := open(t, tmp)
	defer f.Close()
	file := open(t, filepath.Join(tmp, "file"))
	defer file.Close()
	_ = unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, immutable) // where that is possible
	if err := RemoveAt(int(f.Fd()), "file"); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(tmp); err != nil || info.Mode().Perm() != 0o751 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func open(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// asNobody calls f in a thread that has the rights of the user nobody.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		done <- func() error {
			// The thread is not given back, and ends with the goroutine.
			runtime.LockOSThread()
			for _, call := range [][2]uintptr{{unix.SYS_SETRESGID, 65534}, {unix.SYS_SETRESUID, 65534}} {
				if _, _, errno := unix.RawSyscall(call[0], call[1], call[1], call[1]); errno != 0 {
					return errno
				}
			}
			f()
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestDescent(t *testing.T) {
	const depth = 5000
	tree := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(tree); err != nil {
			t.Error(err)
		}
	})
	var inodes []uint64
	nest(t, tree, depth, func(_, fd int) {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		inodes = append(inodes, st.Ino)
	})
	fewFiles(t)
	d := NewDescent(open(t, tree))
	defer d.Close()
	check := func(level int) {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Fstat(d.Fd(), &st); err != nil || st.Ino != inodes[level] {
			t.Fatalf("level %d: inode %d, not %d: %v", level, st.Ino, inodes[level], err)
		}
	}
	for level := range depth - 1 {
		check(level)
		if err := d.Enter("d"); err != nil {
			t.Fatal(err)
		}
		if err := d.Enter("missing"); err != unix.ENOENT {
			t.Fatalf("error %v", err)
		}
	}
	for level := depth - 1; level > 0; level-- {
		check(level)
		if level%100 == 0 { // down and up again
			for range 3 * maxOpen {
				if d.Enter("d") != nil {
					break
				}
				level++
				check(level)
			}
			for range 2 * maxOpen {
				if err := d.Leave(); err != nil {
					t.Fatal(err)
				}
				level--
				check(level)
			}
			for level%100 != 0 {
				if err := d.Leave(); err != nil {
					t.Fatal(err)
				}
				level--
			}
		}
		if err := d.Leave(); err != nil {
			t.Fatal(err)
		}
	}
	check(0)
}

func TestDescentMoved(t *testing.T) {
	tree := t.TempDir()
	nest(t, tree, 2*maxOpen, nil)
	d := NewDescent(open(t, tree))
	defer d.Close()
	for range 2 * maxOpen {
		if err := d.Enter("d"); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Rename(tree+strings.Repeat("/d", 3), tree+"/e")); err != nil {
		t.Fatal(err)
	}
	var err error
	left := 0
	for ; err == nil && left < 2*maxOpen; left++ {
		err = d.Leave()
	}
	if !errors.Is(err, ErrMoved) || left != 2*maxOpen-2 {
		t.Errorf("after %d: error %v", left, err)
	}
}

func TestRemoveDirAt(t *testing.T) {
	tmp := t.TempDir()
	mine, other := filepath.Join(tmp, "mine"), filepath.Join(tmp, "other")
	for _, dir := range []string{mine, other} {
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	parent, dir := open(t, tmp), open(t, mine)
	defer parent.Close()
	defer dir.Close()
	id, err := Identify(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink(mine, filepath.Join(tmp, "link")), os.Chmod(mine, 0)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"other", "link", "other/file", "missing"} {
		if err := RemoveDirAt(int(parent.Fd()), name, id); err != ErrOther {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if err := RemoveDirAt(int(parent.Fd()), "mine", id); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(mine); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(other, "file")); err != nil {
		t.Error(err)
	}
}
