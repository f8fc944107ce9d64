package registrytest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// NewStore returns an empty image store.
func NewStore(t testing.TB) *cas.Store {
	t.Helper()
	s, err := cas.Open(filepath.Join(t.TempDir(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Put puts a document, or bytes as they are, into the store.
func Put(t testing.TB, s *cas.Store, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	data, ok := v.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	desc, err := s.Put(mediaType, data)
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

// PutImage puts an image with layers of about so many random bytes into the store and returns its manifest.
func PutImage(t testing.TB, s *cas.Store, p ocispec.Platform, sizes ...int) ocispec.Descriptor {
	t.Helper()
	var layers []ocispec.Descriptor
	var ids []digest.Digest
	for _, size := range sizes {
		data := make([]byte, size)
		rng := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(len(layers)), byte(len(p.Architecture))})
		rng.Read(data)
		var tarball, zipped bytes.Buffer
		tw := tar.NewWriter(&tarball)
		if err := tw.WriteHeader(&tar.Header{Name: "data", Mode: 0o644, Size: int64(size)}); err != nil {
			t.Fatal(err)
		}
		tw.Write(data)
		tw.Close()
		zw := gzip.NewWriter(&zipped)
		zw.Write(tarball.Bytes())
		zw.Close()
		layers = append(layers, Put(t, s, ocispec.MediaTypeImageLayerGzip, zipped.Bytes()))
		ids = append(ids, digest.FromBytes(tarball.Bytes()))
	}
	cfg := Put(t, s, ocispec.MediaTypeImageConfig, ocispec.Image{Platform: p, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: ids}})
	desc := Put(t, s, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: cfg, Layers: layers,
	})
	desc.Platform = &p
	return desc
}

// PutIndex puts an index into the store.
func PutIndex(t testing.TB, s *cas.Store, entries ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	return Put(t, s, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries,
	})
}
