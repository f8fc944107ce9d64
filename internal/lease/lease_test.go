package lease

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"time"
)

// TestRemove: what is held stays, what is not goes, and is then missed.
func TestRemove(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"directory": func(path string) error { return os.MkdirAll(filepath.Join(path, "in", "it"), 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, trash := t.TempDir(), t.TempDir()
			path := filepath.Join(dir, "thing")
			if _, err := Take(path); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("Take of nothing = %v", err)
			}
			if err := make(path); err != nil {
				t.Fatal(err)
			}
			l, err := Take(path)
			if err != nil {
				t.Fatal(err)
			}
			other, err := Take(path)
			if err != nil {
				t.Fatalf("a second Take: %v", err)
			}
			l.Release()
			if _, ok, err := Remove(path, trash); ok || err != nil || !InUse(path) {
				t.Fatalf("Remove of what is held = %v, %v", ok, err)
			}
			other.Release()
			gone, ok, err := Remove(path, trash)
			if !ok || err != nil {
				t.Fatalf("Remove = %v, %v", ok, err)
			}
			if _, err := os.Lstat(gone); err != nil {
				t.Error(err)
			}
			if _, err := Take(path); !errors.Is(err, fs.ErrNotExist) || InUse(path) {
				t.Errorf("Take of what was removed = %v", err)
			}
			if _, ok, err := Remove(path, trash); ok || err != nil {
				t.Errorf("Remove of nothing = %v, %v", ok, err)
			}
		})
	}
}

// TestTakeOrMiss: whoever takes a thing finds it under its name until it is released, however many remove it.
func TestTakeOrMiss(t *testing.T) {
	dir, trash := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "thing")
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, _, err := Remove(path, trash); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var users sync.WaitGroup
	var taken atomic.Int64
	for range 4 {
		users.Go(func() {
			for i := 0; i < 200 || taken.Load() == 0; i++ {
				fresh, err := os.MkdirTemp(trash, "new-")
				if err != nil {
					t.Error(err)
					return
				}
				// Not rename(2), which would put it in the place of an empty directory that another user holds.
				if unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE) != nil {
					_ = os.Remove(fresh) // another has made it
				}
				l, err := Take(path)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				taken.Add(1)
				if _, err := os.Lstat(path); err != nil {
					t.Errorf("what is held: %v", err)
				}
				l.Release()
			}
		})
	}
	users.Wait()
	close(stop)
	wg.Wait()
}

// TestUsed: the time of the last use is written, but not for every use.
func TestUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "thing")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for age, written := range map[time.Duration]bool{grain / 2: false, 2 * grain: true} {
		old := time.Now().Add(-age).Truncate(time.Second)
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		l, err := Take(path)
		if err != nil {
			t.Fatal(err)
		}
		l.Release()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := !info.ModTime().Equal(old); got != written {
			t.Errorf("used after %v: written %v, want %v", age, got, written)
		}
	}
}
