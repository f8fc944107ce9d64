package layer

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
)

// VerifyDiffID returns a reader of an image's layer, which fails at its end unless the bytes have the SHA-256 that the image's
// configuration names, in hexadecimal digits. tarball is the uncompressed layer. compressed is where its bytes come from: it is read to
// its end too, so that whatever verifies these sees all of them. Every layer that is kept under its diff ID is read by one, since
// otherwise an image could replace the layer of another.
func VerifyDiffID(tarball, compressed io.Reader, diffID string) io.Reader {
	return &diffIDReader{tarball, compressed, sha256.New(), diffID}
}

type diffIDReader struct {
	r    io.Reader
	rest io.Reader
	hash hash.Hash
	want string
}

func (d *diffIDReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.hash.Write(p[:n])
	if err != io.EOF {
		return n, err
	}
	// Not by the WriteTo that rest may have: one that has ended returns io.EOF again, and nothing would be compared.
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{d.rest}); err != nil {
		return n, err
	}
	if got := fmt.Sprintf("%x", d.hash.Sum(nil)); got != d.want {
		return n, fmt.Errorf("its uncompressed bytes have digest sha256:%s, and the image's config says sha256:%s", got, d.want)
	}
	return n, io.EOF
}
