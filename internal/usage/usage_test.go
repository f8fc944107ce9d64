package usage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"golang.org/x/sys/unix"
)

// walked is what Of is to return, from every path of a tree that is shallow enough to have paths.
func walked(t *testing.T, path string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		sum += Stat(&st)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestOf(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755), os.MkdirAll(filepath.Join(dir, "a/d"), 0o755),
		os.WriteFile(filepath.Join(dir, "a/b/file"), make([]byte, 100000), 0o600), os.WriteFile(filepath.Join(dir, "a/d/file"), make([]byte, 5000), 0o600),
		os.Link(filepath.Join(dir, "a/b/file"), filepath.Join(dir, "a/d/link")), os.Symlink("/", filepath.Join(dir, "a/root")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"", "a/b", "a/b/file", "a/root"} {
		path = filepath.Join(dir, path)
		if got, err := Of(t.Context(), path); err != nil || got != walked(t, path) || got == 0 && path != filepath.Join(dir, "a/root") {
			t.Errorf("%s: %d bytes, not %d: %v", path, got, walked(t, path), err)
		}
	}
	if got, err := Of(t.Context(), filepath.Join(dir, "missing")); got != 0 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
}

// A cache mount may hold what is deeper than any path.
func TestOfDeep(t *testing.T) {
	const depth = 3000
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dirtree.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	var want int64
	for i := 0; err == nil; i++ {
		var st unix.Stat_t
		err = errors.Join(unix.Fstat(fd, &st))
		want += Stat(&st)
		if i == depth {
			break
		}
		if err == nil {
			err = unix.Mkdirat(fd, "dir", 0o755)
		}
		below := -1
		if err == nil {
			below, err = unix.Openat(fd, "dir", unix.O_PATH|unix.O_DIRECTORY, 0)
		}
		unix.Close(fd)
		fd = below
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if got, err := Of(t.Context(), dir); err != nil || got != want {
		t.Errorf("%d bytes, not %d: %v", got, want, err)
	}
}

func TestOfEnds(t *testing.T) {
	dir := t.TempDir()
	for i := range 100 {
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Of(ctxtest.EndAfter(50), dir); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Of: %v", err)
	}
}
