package snapshot

import (
	"context"
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/mount"
	"github.com/kilnbuild/kiln/snapshot/roots"
)

// Stack returns the root file system of these layers, the lowest first. Files of those that were only indexed cannot be opened.
func (s *Store) Stack(ids []string) (*layer.Stack, error) {
	var parts []layer.Part
	for _, id := range ids {
		m, err := s.entries(id)
		if err != nil {
			return nil, err
		}
		parts = append(parts, layer.Part{ID: id, Manifest: m, Files: func() (layer.Files, error) { return s.filesWith(id, m) }})
	}
	return layer.NewStack(parts), nil
}

// Mount mounts the root file system made of these layers, the lowest first, with the ids of files mapped unless idmap is nil: see
// roots.Mount. Without a pending layer it is read-only; with one, what is written goes there, and CommitChanges reads it.
func (s *Store) Mount(ctx context.Context, ids []string, up *Pending, idmap *mount.IDMap) (*roots.Root, error) {
	lower, err := s.lower(ids)
	if err != nil {
		return nil, err
	}
	tree, err := s.Stack(ids)
	if err != nil {
		return nil, err
	}
	var upper *roots.Upper
	if up != nil {
		upper = &roots.Upper{Dir: up.Dir(), Root: up.fs, Beside: up.dir}
	}
	return roots.Mount(ctx, s.fs, lower, tree, upper, idmap)
}

// TryOverlay returns why roots are copies and not overlays; nil where they are overlays.
func (s *Store) TryOverlay() error { return s.fs.TryOverlay() }

// Export writes a whole file tree into the directory called name, which exists and is empty, with all that the entries say.
func (s *Store) Export(ctx context.Context, tree layer.Tree, name string) error {
	return roots.Export(ctx, s.fs, tree, name)
}

// MaxLayers is the number of layers with entries that a root file system can be mounted of: the number of directories that overlayfs
// stacks, less the empty one on top of a root that is only read.
const MaxLayers = roots.MaxLower

// TooManyLayersError is the error of mounting a root file system of more than MaxLayers layers.
type TooManyLayersError struct{ Layers int }

func (e *TooManyLayersError) Error() string {
	return fmt.Sprintf("the root file system has %d layers, and overlayfs stacks at most %d: combine instructions, or start a new stage that copies the files (COPY --from=STAGE / /)", e.Layers, MaxLayers)
}

// CheckLayers returns a *TooManyLayersError if a root file system of n different layers with entries cannot be mounted.
func CheckLayers(n int) error {
	if n > MaxLayers {
		return &TooManyLayersError{Layers: n}
	}
	return nil
}

// lower returns the directories of a root file system made of these layers, the uppermost first.
func (s *Store) lower(ids []string) ([]string, error) {
	var dirs []string
	seen := map[string]bool{}
	for _, id := range slices.Backward(ids) {
		// A layer that lies below itself adds nothing there, and the kernel does not stack a directory twice.
		if seen[id] {
			continue
		}
		seen[id] = true
		m, err := s.Manifest(id)
		if err != nil {
			return nil, err
		}
		if m.Entries == 0 {
			continue
		}
		files, err := s.unpacked(id)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, s.fsDir(files))
		// The same holds for a base.
		if base := s.baseOf(id, m); base != "" && !seen[base] {
			seen[base] = true
			dirs = append(dirs, s.fsDir(base))
		}
	}
	return dirs, CheckLayers(len(dirs))
}
