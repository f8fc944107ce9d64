package snapshot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// bareNote is there beside a layer that was made where roots are copies: it is without the marks by which an overlay sees what it
// deletes.
const bareNote = "bare"

// Verify compares a layer's files with its manifest, see dir.FS.Verify. It calls damage for each file that differs, by its path from the
// layer's directory, or for the manifest itself; progress takes how many bytes were read. A layer that does not exist, or is removed before
// it is looked at, is in order; one that is looked at stays meanwhile.
func (s *Store) Verify(ctx context.Context, id string, damage func(path, what string), progress func(int64)) error {
	l, err := lease.Take(s.Path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Release()
	m, err := layer.OpenManifest(filepath.Join(s.dir, id, "manifest"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		damage("manifest", "is not there")
		return nil
	case errors.Is(err, layer.ErrOtherVersion):
		damage("manifest", "was written by another version of kiln")
		return nil
	case errors.Is(err, layer.ErrDamaged):
		damage("manifest", "is not what was written: its checksum is wrong")
		return nil
	case err != nil:
		return err
	}
	defer m.Close()
	return s.compare(ctx, id, m, damage, progress)
}

// compare is Verify of a layer that is held, with its manifest.
func (s *Store) compare(ctx context.Context, id string, m *layer.Manifest, damage func(path, what string), progress func(int64)) error {
	if s.isPacked(id) {
		return nil // its bytes are those of its blob; without that it does not exist, and nothing is wrong
	}
	own, err := s.verifiable(id, m)
	if err != nil {
		return nil // its base does not exist, so neither does the layer, and nothing is wrong
	}
	_, err = os.Lstat(filepath.Join(s.dir, id, bareNote))
	err = s.fs.Verify(ctx, s.fsDir(id), m, own, err == nil, func(path, what string) { damage("fs/"+path, what) }, progress)
	if _, files := os.Lstat(s.fsDir(id)); errors.Is(files, fs.ErrNotExist) {
		damage("fs", "is not there")
		return nil
	}
	return err
}

// verifiable returns which paths of the layer must be in its own directory, but for directories; nil for all.
func (s *Store) verifiable(id string, m *layer.Manifest) (map[string]bool, error) {
	if !m.Over {
		return nil, nil
	}
	base, err := layer.OpenManifest(filepath.Join(s.Path(s.Base(id)), "manifest"))
	if err != nil {
		return nil, err
	}
	defer base.Close()
	return dir.Differing(m, base), nil
}
