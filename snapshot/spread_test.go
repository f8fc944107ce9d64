package snapshot

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A directory that is too slow is replaced by another, which is as it was to be, until there were too many.
func TestSpreading(t *testing.T) {
	tmp, dir := t.TempDir(), t.TempDir()
	s := &spreading{tmp: tmp, slow: 1}
	s.once.Do(func() { s.left = maxSlow })
	at, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	for name, mode := range map[string]os.FileMode{"a": 0o755, "b": 0o700, "c": 0o511} {
		if err := s.mkdir(int(at.Fd()), name, uint32(mode)); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != mode|os.ModeDir {
			t.Errorf("%s is %v, %v, want mode %v", name, info, err, mode)
		}
	}
	if err := s.mkdir(int(at.Fd()), "a", 0o755); err != unix.EEXIST {
		t.Errorf("mkdir of a directory that is there: %v", err)
	}
	kept, err := os.ReadDir(tmp)
	if err != nil || len(kept) != maxSpread || s.may() {
		t.Errorf("%d directories are kept, %v, want all but the last one that was tried, and the one whose place that took", len(kept), err)
	}
}
