package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

var errWrite = errors.New("it cannot be written")

// half writes something and fails.
func half(w io.Writer) error {
	_, err := io.WriteString(w, "half")
	return errors.Join(err, errWrite)
}

// A file is replaced as a whole or stays as it was, and nothing is left beside it.
func TestWhole(t *testing.T) {
	top := t.TempDir()
	tmp := filepath.Join(top, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(top)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	path := filepath.Join(top, "f")
	for name, write := range map[string]func(func(io.Writer) error) error{
		"Write":   func(f func(io.Writer) error) error { return Write(path, tmp, f) },
		"WriteAt": func(f func(io.Writer) error) error { return WriteAt(dir, "f", f) },
	} {
		if err := os.WriteFile(path, []byte("before"), 0o640); err != nil {
			t.Fatal(err)
		}
		if err := write(half); !errors.Is(err, errWrite) {
			t.Errorf("%s that fails: %v", name, err)
		}
		if data, err := os.ReadFile(path); string(data) != "before" {
			t.Errorf("%s that failed left %q, %v", name, data, err)
		}
		all := func(w io.Writer) error { _, err := io.WriteString(w, "after"); return err }
		if err := write(all); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if data, err := os.ReadFile(path); string(data) != "after" {
			t.Errorf("%s wrote %q, %v", name, data, err)
		}
	}
	if err := Symlink("target", path, tmp); err != nil {
		t.Error(err)
	}
	if target, err := os.Readlink(path); target != "target" {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	for _, d := range []string{top, tmp} {
		names, err := os.ReadDir(d)
		if err != nil || len(names) > 2 {
			t.Errorf("%s holds %v, %v", d, names, err)
		}
	}
}

// A new file of the user's has the permissions that the umask leaves, and one that is replaced keeps its own.
func TestPermissions(t *testing.T) {
	defer unix.Umask(unix.Umask(0o027))
	top := t.TempDir()
	dir, err := os.Open(top)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	write := func(name string) os.FileMode {
		if err := WriteAt(dir, name, func(io.Writer) error { return nil }); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(top, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode()
	}
	if got := write("new"); got != 0o640 {
		t.Errorf("a new file has mode %o", got)
	}
	if err := os.WriteFile(filepath.Join(top, "private"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := write("private"); got != 0o600 {
		t.Errorf("a file that was private has mode %o", got)
	}
}

// TestWriteAtKeepsSpecialFiles shows that a device, named pipe or socket is not replaced.
func TestWriteAtKeepsSpecialFiles(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, kind := range []uint32{unix.S_IFIFO, unix.S_IFSOCK} {
		if err := unix.Mknodat(int(dir.Fd()), "special", kind|0o600, 0); err != nil {
			t.Fatal(err)
		}
		if err := WriteAt(dir, "special", func(io.Writer) error { return nil }); !errors.Is(err, errSpecial) {
			t.Errorf("%o: %v", kind, err)
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), "special", &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode != kind|0o600 {
			t.Errorf("%o became %o, %v", kind, st.Mode, err)
		}
		if err := unix.Unlinkat(int(dir.Fd()), "special", 0); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := dir.Readdirnames(0); err != nil || len(left) > 0 {
		t.Errorf("there is %q, %v", left, err)
	}
}
