package cas

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// RepairLayout replaces a damaged oci-layout file in the root, which prevents Open. It reports whether it did. If the file does
// not exist, Open creates it; a file of another version is kept.
func RepairLayout(root string) (bool, error) {
	path := filepath.Join(root, ocispec.ImageLayoutFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var l ocispec.ImageLayout
	if err := json.Unmarshal(data, &l); err == nil && l.Version == ocispec.ImageLayoutVersion {
		return false, nil
	} else if err == nil && l.Version != "" {
		return false, checkLayout(data)
	}
	if err := os.Remove(path); err != nil {
		return false, err
	}
	_, err = Open(root)
	return err == nil, err
}

// CheckIndex returns the error of reading index.json, or nil.
func (s *Store) CheckIndex() error {
	_, err := readIndex(s.indexPath())
	return err
}

// RepairIndex replaces an unreadable index.json. The new one has the entries that can still be read and whose blobs exist, and
// the entries in others, without names.
func (s *Store) RepairIndex(others []ocispec.Descriptor) (err error) {
	l, err := lock.Acquire(s.Context, filepath.Join(s.root, locksDir, rootdir.IndexLock), false)
	if err != nil {
		return fmt.Errorf("repair the list of images: %w", err)
	}
	defer func() { err = errors.Join(err, l.Release()) }()
	if s.CheckIndex() == nil {
		return nil // another process has repaired it
	}
	data, err := os.ReadFile(s.indexPath())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("repair the list of images: %w", err)
	}
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{},
	}
	listed := map[string]bool{}
	for _, d := range salvage(data) {
		name := nameOf(d)
		if _, err := ParseDigest(string(d.Digest)); err != nil || !s.sound(context.Background(), d) ||
			name != "" && !validName(name) || listed[name+" "+string(d.Digest)] {
			continue
		}
		listed[name+" "+string(d.Digest)], listed[string(d.Digest)] = true, true
		index.Manifests = append(index.Manifests, d)
	}
	for _, d := range others {
		if !listed[string(d.Digest)] {
			index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
		}
	}
	if data, err = json.Marshal(index); err == nil {
		err = s.replaceIndex(context.Background(), data)
	}
	if err != nil {
		return fmt.Errorf("repair the list of images: %w", err)
	}
	return nil
}

// salvage returns the descriptors that can be found in damaged JSON.
func salvage(data []byte) (out []ocispec.Descriptor) {
	for {
		i := bytes.IndexByte(data, '{')
		if i < 0 {
			return out
		}
		data = data[i:]
		var d ocispec.Descriptor
		dec := json.NewDecoder(bytes.NewReader(data))
		if err := dec.Decode(&d); err == nil && d.Digest != "" {
			out = append(out, d)
			data = data[dec.InputOffset():]
		} else {
			data = data[1:]
		}
	}
}
