package cachemount

import (
	"os"
	"path/filepath"
	"testing"
)

// A cache is emptied once in a build, also if it does not exist when its first step begins.
func TestEmptiedOnce(t *testing.T) {
	for _, existed := range []bool{false, true} {
		mounts, tmp := t.TempDir(), t.TempDir()
		dir := filepath.Join(mounts, "cache")
		old, left := filepath.Join(dir, Files, "old"), filepath.Join(dir, Files, "left")
		if existed {
			if err := os.MkdirAll(old, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var e Emptied
		if err := e.Once(t.Context(), dir, tmp); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(old); !os.IsNotExist(err) {
			t.Errorf("existed %v: what was there is left: %v", existed, err)
		}
		if err := os.MkdirAll(left, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := e.Once(t.Context(), dir, tmp); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(left); err != nil {
			t.Errorf("existed %v: what the first step left is gone: %v", existed, err)
		}
	}
}
