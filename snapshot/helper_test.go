package snapshot

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// tested is a store with a job, whose methods take the test's context.
type tested struct {
	*Job
	*Store
	t    *testing.T
	root string
	cas  *cas.Store
}

func newStore(t *testing.T) *tested {
	t.Helper()
	return storeIn(t, t.TempDir())
}

// storeInMemory is newStore for layers of many files.
func storeInMemory(t *testing.T) *tested {
	t.Helper()
	root, err := os.MkdirTemp("/dev/shm", "kiln-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	return storeIn(t, root)
}

func storeIn(t *testing.T, root string) *tested {
	t.Helper()
	tmp := filepath.Join(root, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	images, err := cas.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		images.Release()
		if left, _ := os.ReadDir(tmp); len(left) > 0 {
			t.Errorf("left in tmp: %v", left)
		}
	})
	return openTested(t, root, images)
}

// reopen opens the store as another process would.
func reopen(t *testing.T, s *tested) *tested {
	t.Helper()
	return openTested(t, s.root, s.cas)
}

func openTested(t *testing.T, root string, images *cas.Store) *tested {
	t.Helper()
	s, err := Open(Config{Root: root, Tmp: filepath.Join(root, "tmp"), Blobs: blob.Store{CAS: images}})
	if err != nil {
		t.Fatal(err)
	}
	o := &tested{s.Job(), s, t, root, images}
	t.Cleanup(func() {
		if err := o.Job.close(-1); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// Has reports whether a layer exists with its carriers.
func (s *tested) Has(id layer.ID) bool { return s.Open(s.t.Context(), id) == nil }

// HasEntries reports whether a layer has a manifest.
func (s *tested) HasEntries(id layer.ID) bool {
	_, err := s.Manifest(id)
	return err == nil
}

func (s *tested) Manifest(id layer.ID) (*layer.Manifest, error) {
	return s.Job.Manifest(s.t.Context(), id)
}

func (s *tested) Files(id layer.ID) (layer.Files, error) { return s.Job.Files(s.t.Context(), id) }

func (s *tested) Stack(ids []layer.ID) (*layer.Stack, error) { return s.Job.Stack(s.t.Context(), ids) }

// fsDir returns the directory with the files of a layer that exists.
func (s *tested) fsDir(id layer.ID) string {
	s.t.Helper()
	f, base, err := formOf(s.Path(id))
	if err != nil {
		s.t.Fatal(err)
	}
	return s.Store.fsDir(id, f, base)
}
