package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
)

// IDs returns the ids of the layers that are there, sound or not.
func (s *Store) IDs() ([]string, error) { return ids(s.dir) }

// Indexed returns the ids of the layers that Index keeps entries of.
func (s *Store) Indexed() ([]string, error) { return ids(s.indexPath("")) }

func ids(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("list the layers: %w", err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list the layers: %w", err)
	}
	var out []string
	for _, name := range names {
		if validID(name) {
			out = append(out, name)
		}
	}
	return out, nil
}

// Path returns where a layer is, if it is there.
func (s *Store) Path(id string) string { return filepath.Join(s.dir, id) }

// IndexPath returns where the entries that Index keeps of a layer are, if they are there.
func (s *Store) IndexPath(id string) string { return s.indexPath(id) }
