package blob

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A note of a blob is its media type, digest and size, its diff id, its pieces if there are any, and a checksum of these.
func remember(b Blob) []byte {
	text := fmt.Sprintf("%s %s %d %s", b.Desc.MediaType, b.Desc.Digest, b.Desc.Size, b.DiffID)
	if b.pieces != "" {
		text += " " + b.pieces
	}
	return fmt.Appendf(nil, "%s %x\n", text, sha256.Sum256([]byte(text)))
}

// parse reads what remember wrote; ok is false if it is damaged.
func parse(note []byte) (have Blob, ok bool) {
	f := strings.Fields(string(note))
	if len(f) != 5 && len(f) != 6 {
		return have, false
	}
	size, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return have, false
	}
	have = Blob{Desc: ocispec.Descriptor{MediaType: f[0], Digest: digest.Digest(f[1]), Size: size}, DiffID: digest.Digest(f[3])}
	if len(f) == 6 {
		have.pieces = f[4]
	}
	return have, bytes.Equal(note, remember(have))
}

// ReadNote reads a note of a blob that was made of a layer, or of another blob. The error is that of reading the file, or says that it is
// damaged.
func ReadNote(path string) (Blob, error) {
	note, err := os.ReadFile(path)
	if err != nil {
		return Blob{}, err
	}
	b, ok := parse(note)
	if !ok {
		return Blob{}, errors.New("its checksum is wrong")
	}
	return b, nil
}

// Notes returns the paths of the notes that are in a layer's directory.
func Notes(dir string) []string {
	names, _ := filepath.Glob(filepath.Join(dir, "blob.*")) // of this pattern there is no error
	return names
}

// NoteName returns the name of the note of the blob that a layer became in an encoding.
func NoteName(f Encoding) string { return "blob." + f.String() }
