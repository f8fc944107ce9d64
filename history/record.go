package history

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/kilnbuild/kiln/internal/atomicfile"
)

// Off reports whether builds are not recorded.
func (h *History) Off() bool { return h.keep.Off }

// WriteRecord keeps what write writes as the record of a build, in place of one that there is.
func (h *History) WriteRecord(id string, write func(io.Writer) error) error {
	if _, _, ok := split(id + recordEnd); !ok {
		return fmt.Errorf("%q is not the ID of a build", id)
	}
	err := os.MkdirAll(h.dir, 0o700)
	if err == nil {
		err = atomicfile.Write(h.file(id, recordEnd), h.tmp, write)
	}
	if err != nil {
		return fmt.Errorf("record the build: %w", err)
	}
	return nil
}

// OpenRecord opens the record of a build. One that there is none of is fs.ErrNotExist.
func (h *History) OpenRecord(id string) (*os.File, error) {
	if _, _, ok := split(id + recordEnd); !ok {
		return nil, fs.ErrNotExist
	}
	return os.Open(h.file(id, recordEnd))
}

// Pinned reports whether a build is kept however old it is.
func (h *History) Pinned(id string) bool {
	_, err := os.Lstat(h.file(id, pinEnd))
	return err == nil
}

// Pin has a build kept however old it is, or not any more. A build that has no record is fs.ErrNotExist.
func (h *History) Pin(id string, keep bool) error {
	if _, err := os.Lstat(h.file(id, recordEnd)); err != nil {
		return err
	}
	if !keep {
		if err := os.Remove(h.file(id, pinEnd)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	f, err := os.OpenFile(h.file(id, pinEnd), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// Remove removes a build, whether it is pinned or not. It reports whether there was anything of it.
func (h *History) Remove(id string) (bool, error) {
	all, err := h.builds()
	if err != nil {
		return false, fmt.Errorf("list the history of builds: %w", err)
	}
	for _, b := range all {
		if b.id == id {
			return true, h.remove(b)
		}
	}
	return false, nil
}

// Prune removes the builds that are not to be kept any more.
func (h *History) Prune() { h.prune() }
