package cas

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// digestPrefix is the one algorithm that is accepted: image-spec, descriptor.md, requires it of every implementation, and
// with one algorithm a digest is its path.
const digestPrefix = "sha256:"

// hexLen is the length of a SHA-256 sum in hexadecimal.
const hexLen = 64

// ParseDigest returns s as a digest if it is "sha256:" and 64 lower-case hexadecimal digits, and nothing else. Every
// digest that comes from outside passes here before a path or an address is made of it.
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
