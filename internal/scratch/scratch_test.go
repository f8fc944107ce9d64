package scratch

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// leave makes a directory as a process leaves it that is killed: unlocked, with things in it.
func leave(t *testing.T, tmp string) string {
	t.Helper()
	d, err := create(tmp)
	if err != nil {
		t.Fatal(err)
	}
	inner := filepath.Join(d.Path(), "layer", "fs", "locked")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(inner, "file"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(inner, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.lock.Release(); err != nil {
		t.Fatal(err)
	}
	return d.Path()
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestOpenAndClose(t *testing.T) {
	tmp := t.TempDir()
	other := filepath.Join(tmp, "blob-1")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dead := leave(t, tmp)
	// One that was killed between making the directory and locking it.
	if err := os.Mkdir(filepath.Join(tmp, prefix+"unlocked"), 0o700); err != nil {
		t.Fatal(err)
	}
	a, err := Open(tmp)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(tmp)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, tmp); len(got) != 3 {
		t.Errorf("tmp has %v, want the directories of two that live and a file of somebody else", got)
	}
	if _, err := os.Lstat(dead); !os.IsNotExist(err) {
		t.Errorf("the directory of a dead process: %v", err)
	}
	// One that dies while another works is gone when that is done.
	leave(t, tmp)
	if err := os.WriteFile(filepath.Join(b.Path(), "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(a.Path()); err != nil {
		t.Errorf("the directory of one that lives: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, tmp); len(got) != 1 || got[0] != "blob-1" {
		t.Errorf("tmp has %v", got)
	}
}

// TestManyAtOnce: however many begin and end at once, nobody's directory is taken for that of a dead process.
func TestManyAtOnce(t *testing.T) {
	tmp := t.TempDir()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 50 {
				d, err := Open(tmp)
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(filepath.Join(d.Path(), "mine"), nil, 0o600); err != nil {
					t.Errorf("the directory of one that lives: %v", err)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := names(t, tmp); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}

// A default access control list of kiln's root gives nothing to what is made.
func TestNoAccessControlList(t *testing.T) {
	tmp := t.TempDir()
	list := []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x07\x00\xff\xff\xff\xff\x20\x00\x07\x00\xff\xff\xff\xff")
	if err := unix.Setxattr(tmp, "system.posix_acl_default", list, 0); err == unix.ENOTSUP {
		t.Skip("the file system knows no access control lists")
	} else if err != nil {
		t.Fatal(err)
	}
	d, err := Open(tmp)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := errors.Join(os.Mkdir(filepath.Join(d.Path(), "dir"), 0o755), os.WriteFile(filepath.Join(d.Path(), "file"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"dir": 0o755, "file": 0o644} {
		path := filepath.Join(d.Path(), name)
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
		b := make([]byte, 1024)
		if n, err := unix.Listxattr(path, b); err != nil || bytes.Contains(b[:max(n, 0)], []byte("posix_acl")) {
			t.Errorf("%s has the attributes %q, %v", name, b[:max(n, 0)], err)
		}
	}
}
