package cas

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MismatchError is returned if bytes do not match their descriptor.
type MismatchError struct {
	// Where is the origin of the bytes: a path or an address.
	Where string
	// Digest and Size are the expected values; Size is -1 if any size is allowed.
	Digest digest.Digest
	Size   int64
	// GotDigest is the digest of the bytes, or "" if their number was already wrong. GotSize is the number of bytes, at most Size+1,
	// since reading stops there.
	GotDigest digest.Digest
	GotSize   int64
}

func (e *MismatchError) Error() string {
	switch {
	case e.Size >= 0 && e.GotSize > e.Size:
		return fmt.Sprintf("%s: blob %s is longer than its %d bytes", e.Where, e.Digest, e.Size)
	case e.Size >= 0 && e.GotSize < e.Size:
		return fmt.Sprintf("%s: blob %s ends after %d of %d bytes", e.Where, e.Digest, e.GotSize, e.Size)
	}
	return fmt.Sprintf("%s: blob %s has other content: its digest is %s", e.Where, e.Digest, e.GotDigest)
}

// VerifyReader returns a reader of r's bytes that returns io.EOF only if they match desc exactly, and a *MismatchError otherwise.
// It reads at most desc.Size+1 bytes from r, and returns at most desc.Size. The bytes must not be relied upon before io.EOF.
// Close closes r. where is the name of r in errors.
func VerifyReader(r io.ReadCloser, desc ocispec.Descriptor, where string) io.ReadCloser {
	return &verifyReader{r: r, desc: desc, where: where, hash: sha256.New()}
}

// Verify reads r to EOF and returns a *MismatchError unless its bytes match desc exactly. It uses buf, if not nil, as a buffer.
func Verify(ctx context.Context, r io.Reader, desc ocispec.Descriptor, buf []byte) error {
	all := &verifyReader{r: io.NopCloser(ctxio.Reader(ctx, r)), desc: desc, where: "file", hash: sha256.New()}
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{all}, buf)
	return err
}

type verifyReader struct {
	r     io.ReadCloser
	desc  ocispec.Descriptor
	where string
	hash  hash.Hash
	n     int64
	err   error // returned by all further calls of Read
	bad   func()
}

func (v *verifyReader) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	if v.n == v.desc.Size {
		if len(p) == 0 {
			return 0, nil
		}
		v.err = v.end()
		return 0, v.err
	}
	if left := v.desc.Size - v.n; int64(len(p)) > left {
		p = p[:left]
	}
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	v.n += int64(n)
	switch {
	case err == io.EOF && v.n < v.desc.Size:
		v.err = v.mismatch("")
	case err == io.EOF:
		v.err = v.verdict()
	case err != nil:
		v.err = err
	}
	return n, v.err
}

// end checks that there are no more bytes.
func (v *verifyReader) end() error {
	var extra [1]byte
	for {
		n, err := v.r.Read(extra[:])
		switch {
		case n > 0:
			v.n++
			return v.mismatch("")
		case err == io.EOF:
			return v.verdict()
		case err != nil:
			return err
		}
	}
}

func (v *verifyReader) verdict() error {
	if got := sum(v.hash); got != v.desc.Digest {
		return v.mismatch(got)
	}
	return io.EOF
}

func (v *verifyReader) mismatch(got digest.Digest) error {
	if v.bad != nil {
		v.bad()
	}
	return &MismatchError{Where: v.where, Digest: v.desc.Digest, Size: v.desc.Size, GotDigest: got, GotSize: v.n}
}

func (v *verifyReader) Close() error { return v.r.Close() }

func sum(h hash.Hash) digest.Digest {
	return digest.Digest(digestPrefix + hex.EncodeToString(h.Sum(nil)))
}
