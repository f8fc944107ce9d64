package thread

import (
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain has the tests run while the first thread is free, as it is in a program whose main goroutine waits.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(4)
	os.Exit(m.Run())
}

func TestNeverTheFirstThread(t *testing.T) {
	before, err := os.Readlink("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			Do(func() {
				if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
					t.Error(err)
				}
				if unix.Gettid() == unix.Getpid() {
					t.Error("the first thread")
				}
			})
		})
	}
	all.Wait()
	if after, err := os.Readlink("/proc/self/ns/uts"); err != nil || after != before {
		t.Errorf("the process was in %s and is in %s, %v", before, after, err)
	}
}
