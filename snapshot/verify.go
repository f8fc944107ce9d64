package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// Verify compares a layer's files with its manifest, see dir.FS.Verify. It calls damage for each file that differs, with its path
// relative to the layer's directory, or for the manifest itself, and progress with the number of bytes read. It reports nothing
// for a layer that does not exist or has been removed. The layer is not pruned while it is verified.
func (s *Store) Verify(ctx context.Context, id layer.ID, damage func(path, what string), progress func(int64)) error {
	l, err := lease.Take(s.Path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Release()
	m, err := layer.OpenManifest(s.manifestPath(id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		damage("manifest", "is missing")
		return nil
	case errors.Is(err, layer.ErrOtherVersion):
		damage("manifest", "was written by another version of kiln")
		return nil
	case errors.Is(err, layer.ErrDamaged):
		damage("manifest", "is corrupt: its checksum is wrong")
		return nil
	case err != nil:
		return err
	}
	defer m.Close()
	form, baseID, err := formOf(s.Path(id))
	if errors.Is(err, layer.ErrDamaged) {
		damage(fsName, "has an unknown form")
		return nil
	}
	if err != nil {
		return err
	}
	if form.is().needsBlob && len(blob.Notes(s.Path(id))) == 0 {
		damage(fsName, "is missing")
		return nil
	}
	var base *opened
	if form.is().base {
		if base, err = s.acquireBase(id, baseID); err != nil {
			return nil // without its base the layer does not exist, which is not an error
		}
		defer s.release(base)
	}
	return s.compare(ctx, id, m, form, base, damage, progress)
}

// compare is like Verify for a layer that is held, given what was read of it.
func (s *Store) compare(
	ctx context.Context, id layer.ID, m *layer.Manifest, form Form, base *opened, damage func(path, what string), progress func(int64),
) error {
	var own map[string]bool
	var baseID layer.ID
	switch form.is().verify {
	case verifyNothing:
		return nil
	case verifyOwn:
		own, baseID = dir.Differing(m, base.manifest), base.id
	}
	inFS := func(path, what string) { damage(filepath.Join(nameOf(form, baseID), path), what) }
	return s.fs.Verify(ctx, s.fsDir(id, form, baseID), m, own, form.is().verify == verifyNoWhiteouts, inFS, progress)
}

// DamagedError is returned when a file of a layer was modified after the layer was made.
type DamagedError = dir.DamagedError

// giveUp discards the layer if err is a *DamagedError, so that the next build makes it again, and returns err. The files stay
// until then, since running steps may have them mounted.
func (s *Store) giveUp(err error) error {
	damaged, ok := errors.AsType[*DamagedError](err)
	if !ok {
		return err
	}
	s.mu.Lock()
	o := s.open[damaged.ID]
	s.mu.Unlock()
	if o != nil {
		s.forget(o, err)
	}
	if rm := os.Remove(s.manifestPath(damaged.ID)); rm != nil && !errors.Is(rm, fs.ErrNotExist) {
		return fmt.Errorf("%w; %w", err, rm)
	}
	return err
}
