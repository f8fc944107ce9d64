package blob

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/cas"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A note of a blob that another version of the compressor made is sound, and its blob can be read, but the blob is made again.
func TestNoteOfAnotherVersion(t *testing.T) {
	images, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := Store{CAS: images}
	desc, err := images.Put(ocispec.MediaTypeImageLayerGzip, []byte("a blob"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := Encoding{Compression: Compression{Type: "gzip", Level: -1}}
	note := filepath.Join(dir, NoteName(f))
	now := formats["gzip"].text(nil)
	for pieces, found := range map[string]bool{now: true, strings.Replace(now, formats["gzip"].version, "1", 1): false, "": false} {
		if err := os.WriteFile(note, Blob{Desc: desc, DiffID: desc.Digest, pieces: pieces}.Note(), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadNote(note); err != nil {
			t.Error(err)
		}
		if _, ok := s.Any(dir); !ok {
			t.Errorf("the blob of the note with %q cannot be read", pieces)
		}
		if _, ok := s.Find(dir, f); ok != found {
			t.Errorf("a note with %q is found: %v", pieces, ok)
		}
	}
}
