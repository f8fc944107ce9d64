package layer

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
)

// UncompressVerified is UncompressAhead for an image's layer: it fails at its end unless the uncompressed bytes have the SHA-256 that the
// image's configuration names, in hexadecimal digits. compressed is read to its end too, so that whatever verifies its bytes sees all
// of them. Every layer that is kept under its diff ID is read by one, since otherwise an image could replace the layer of another.
func UncompressVerified(compressed io.Reader, diffID string) (io.ReadCloser, error) {
	sum := sha256.New()
	plain, err := UncompressAhead(compressed, sum)
	if err != nil {
		return nil, err
	}
	return &verified{plain, compressed, sum, diffID}, nil
}

type verified struct {
	io.ReadCloser
	rest io.Reader
	sum  hash.Hash
	want string
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	if err != io.EOF {
		return n, err
	}
	// Not by the WriteTo that rest may have: one that has ended returns io.EOF again, and nothing would be compared.
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{v.rest}); err != nil {
		return n, err
	}
	if got := fmt.Sprintf("%x", v.sum.Sum(nil)); got != v.want {
		return n, &DiffIDError{Got: got, Want: v.want}
	}
	return n, io.EOF
}

// DiffIDError is a layer of an image that is not the one which the image's configuration names. Both are SHA-256, in hexadecimal digits.
type DiffIDError struct{ Got, Want string }

func (e *DiffIDError) Error() string {
	return fmt.Sprintf("its uncompressed bytes have digest sha256:%s, and the image's config says sha256:%s", e.Got, e.Want)
}
