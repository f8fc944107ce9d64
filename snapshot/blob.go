package snapshot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/dir"
)

// packedNote is there beside a layer that was committed without files, because nobody was expected to need them: they are in
// the blob that it became.
const packedNote = "packed"

// Blob opens the tar of a packed layer, uncompressed.
type Blob func() (io.ReadCloser, error)

// Pack makes the pending layer one without files, that has the note of its blob from the beginning: see SetNote. It is the
// last that is done before CommitWritten.
func (p *Pending) Pack(note string, data []byte) error {
	if err := os.WriteFile(filepath.Join(p.dir, note), data, 0o600); err != nil {
		return fmt.Errorf("keep a layer as its blob: %w", err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, packedNote), nil, 0o600); err != nil {
		return fmt.Errorf("keep a layer as its blob: %w", err)
	}
	if err := os.Remove(p.Dir()); err != nil {
		return fmt.Errorf("keep a layer as its blob: %w", err)
	}
	return nil
}

func (s *Store) isPacked(id string) bool {
	_, err := os.Lstat(filepath.Join(s.dir, id, packedNote))
	return err == nil
}

// blob returns the blob of a packed layer, which stays as long as this process lives.
func (s *Store) blob(id string) (Blob, bool) {
	if s.Blob == nil {
		return nil, false
	}
	return s.Blob(id)
}

// unpacked returns the layer that has the files of a layer that is there: itself, or for a packed one another, which is
// made of its blob, named by what it was made from, and in nobody's record. If that is removed, it is made again.
func (s *Store) unpacked(id string) (string, error) {
	s.mu.Lock()
	files, ok := s.files[id]
	s.mu.Unlock()
	if ok {
		return files, nil
	}
	files = id
	if s.isPacked(id) {
		var err error
		if files, err = s.unpack(id); err != nil {
			return "", err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[id] = files
	return files, nil
}

func (s *Store) unpack(id string) (string, error) {
	m, err := s.Manifest(id)
	if err != nil {
		return "", err
	}
	files := fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "files of %s %d", id, m.Created.UnixNano())))
	s.unpacking.Lock() // steps that start together mostly need the same
	defer s.unpacking.Unlock()
	if s.Has(files) {
		return files, nil
	}
	open, ok := s.blob(id)
	if !ok {
		return "", fmt.Errorf("the blob of layer %.12s is not there any more: build again", id)
	}
	if err := s.unpackAs(id, files, m, open); err != nil {
		return "", fmt.Errorf("unpack layer %.12s: %w", id, err)
	}
	return files, nil
}

// unpackAs writes the layer of a manifest with the bytes of its files from a tar, and commits it under the id files. If the bytes are not
// those of the manifest, the packed layer is given up.
func (s *Store) unpackAs(packed, files string, m *layer.Manifest, open Blob) error {
	p, err := s.New()
	if err != nil {
		return err
	}
	defer p.Close()
	tarball, err := open()
	if err != nil {
		return s.giveUp(&DamagedError{ID: packed})
	}
	defer tarball.Close()
	w, err := p.Manifest()
	if err != nil {
		return err
	}
	for e := range m.All() {
		if err := w.Add(e); err != nil {
			w.Abort()
			return err
		}
	}
	sum, err := w.Close(m.Created)
	if err != nil {
		return err
	}
	if err := s.fs.Unpack(s.Context, m, tarball, p.fs); err != nil {
		if errors.Is(err, dir.ErrBlob) && ctxio.Ended(s.Context) == nil {
			return errors.Join(s.giveUp(&DamagedError{ID: packed}), err)
		}
		return err
	}
	_, err = p.CommitWritten(sum, files)
	return err
}
