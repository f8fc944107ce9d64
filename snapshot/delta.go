package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/internal/layer"
)

// baseNote holds the id of the base of a delta, whose manifest says that it is one: see package dir. A delta whose base does not exist does
// not exist either.
const baseNote = "over"

// Base returns the base of a delta; "" for a layer that has all its files, or does not exist.
func (s *Store) Base(id string) string {
	if !validID(id) {
		return ""
	}
	note, err := os.ReadFile(filepath.Join(s.dir, id, baseNote))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(note), "\n")
}

// baseOf is Base for a layer with this manifest.
func (s *Store) baseOf(id string, m *layer.Manifest) string {
	if !m.Over {
		return ""
	}
	return s.Base(id)
}

// holdBase holds the base of a layer with this manifest, if it is a delta. s.mu is held.
func (s *Store) holdBase(id string, m *layer.Manifest) error {
	if !m.Over {
		return nil
	}
	baseID := s.Base(id)
	base, err := s.manifest(baseID)
	if err == nil && (base.Over || s.isPacked(baseID)) {
		err = layer.ErrDamaged // kiln makes no such layers
	}
	if err != nil {
		return fmt.Errorf("the base of layer %s: %w", id, err)
	}
	return nil
}
