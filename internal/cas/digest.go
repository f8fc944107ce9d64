package cas

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// digestPrefix is the only accepted algorithm: image-spec, descriptor.md, requires every implementation to support it, and with a
// single algorithm a digest determines its path.
const digestPrefix = "sha256:"

// hexLen is the length of a SHA-256 sum in hexadecimal.
const hexLen = 64

// ParseDigest returns s as a digest. It must be "sha256:" followed by 64 lower-case hexadecimal digits. Every digest from outside
// is checked here before it becomes part of a path or an address.
func ParseDigest(s string) (digest.Digest, error) {
	hex, ok := strings.CutPrefix(s, digestPrefix)
	if !ok || len(hex) != hexLen {
		return "", fmt.Errorf("parse digest %.100q: want sha256: and %d hexadecimal digits", s, hexLen)
	}
	for _, c := range []byte(hex) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", fmt.Errorf("parse digest %.100q: want lower-case hexadecimal digits", s)
		}
	}
	return digest.Digest(s), nil
}
