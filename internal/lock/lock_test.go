package lock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExclusion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l")
	a, err := Acquire(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, shared := range []bool{false, true} {
		if _, err := Try(path, shared); !errors.Is(err, unix.EWOULDBLOCK) {
			t.Fatalf("Try(shared=%v) while held = %v, want EWOULDBLOCK", shared, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := Acquire(ctx, path, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Acquire past the deadline = %v", err)
	}
	if err := a.Release(); err != nil {
		t.Fatal(err)
	}
	if err := a.Release(); err != nil {
		t.Fatalf("second Release = %v", err)
	}
	b, err := Try(path, true)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Try(path, true)
	if err != nil {
		t.Fatalf("second shared holder: %v", err)
	}
	b.Release()
	c.Release()
}

// TestRemove lets many holders remove the file while others open it; at no time may two hold it.
func TestRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "l")
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		count int
	)
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				l, err := Acquire(t.Context(), path, false)
				if err != nil {
					t.Error(err)
					return
				}
				if !mu.TryLock() {
					t.Error("two holders at once")
					l.Release()
					return
				}
				count++
				mu.Unlock()
				if i%2 == 0 {
					err = l.Remove()
				} else {
					err = l.Release()
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if count != 800 {
		t.Errorf("count = %d, want 800", count)
	}
}

func TestRefusesSymlink(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "victim"), filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	if _, err := Try(filepath.Join(dir, "l"), false); err == nil {
		t.Fatal("locked through a symbolic link")
	}
	if _, err := os.Lstat(filepath.Join(dir, "victim")); err == nil {
		t.Fatal("made the link's target")
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	held, err := Acquire(t.Context(), filepath.Join(dir, "key-held"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	for _, name := range []string{"key-dead", "index"} {
		l, err := Acquire(t.Context(), filepath.Join(dir, name), false)
		if err != nil {
			t.Fatal(err)
		}
		l.Release() // without Remove, as the kernel does when a process dies
	}
	Sweep(dir, "index")
	for name, want := range map[string]bool{"key-held": true, "key-dead": false, "index": true} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
}
