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

// MismatchError says that bytes are not those that a descriptor names.
type MismatchError struct {
	// Where is where the bytes came from: a path or an address.
	Where string
	// Digest and Size are what was wanted; Size is -1 where any was.
	Digest digest.Digest
	Size   int64
	// GotDigest is the digest of the bytes, or "" if their number told already. GotSize is that number, and no more than
	// Size+1 when there were too many, since nobody reads on from there.
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

// VerifyReader returns a reader of r's bytes that ends with io.EOF only if they are exactly those of desc, and with a
// *MismatchError otherwise. Never more than desc.Size+1 bytes are read from r, and never more than desc.Size returned.
// What has been read must not be relied upon before io.EOF. Closing it closes r. Where names r in errors.
func VerifyReader(r io.ReadCloser, desc ocispec.Descriptor, where string) io.ReadCloser {
	return &verifyReader{r: r, desc: desc, where: where, hash: sha256.New()}
}

// Verify reads r to its end and returns a *MismatchError unless its bytes are exactly those of desc. buf, which
// may be nil, is what it reads with.
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
	err   error // what every further Read returns
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

// end looks for a byte too many behind the last one.
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
