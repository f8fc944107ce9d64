package layer

import (
	"bufio"
	"errors"
	"io"

	"github.com/kilnbuild/kiln/internal/gunzip"
	"github.com/kilnbuild/kiln/internal/zstdframes"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/readahead"
)

// compression is what a stream is compressed with.
type compression int

const (
	uncompressed compression = iota
	gzipped
	zstandard
)

// detect looks at the first bytes of r, and returns a reader of all of them.
func detect(r io.Reader) (*bufio.Reader, compression, error) {
	buf := bufio.NewReaderSize(r, 64<<10)
	head, err := buf.Peek(4)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, uncompressed, err
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return buf, gzipped, nil
	case IsZstd(string(head)):
		return buf, zstandard, nil
	}
	return buf, uncompressed, nil
}

// IsZstd reports whether something that begins with these four bytes is compressed by zstd. Its first frame may be one that is skipped,
// as pzstd writes it (RFC 8878, 3.1.2).
func IsZstd(head string) bool {
	return head == "\x28\xb5\x2f\xfd" || len(head) == 4 && head[0]&0xf0 == 0x50 && head[1:] == "\x2a\x4d\x18"
}

// Uncompress returns a reader of the uncompressed bytes of r, which may be gzip, zstd or uncompressed, depending on its first
// bytes.
func Uncompress(r io.Reader) (io.ReadCloser, error) {
	buf, c, err := detect(r)
	if err != nil {
		return nil, err
	}
	switch c {
	case gzipped:
		z, err := gunzip.NewReader(buf)
		if err != nil {
			return nil, err
		}
		return z, nil
	case zstandard:
		z, err := zstd.NewReader(buf, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(buf), nil
}

// maxZstdWindow limits the memory that a zstd stream may require: zstd itself accepts 128 MiB without --long.
const maxZstdWindow = 128 << 20

// UncompressAhead is like Uncompress, but reads and decompresses in goroutines of its own before the bytes are read: 2 MiB, and what is made
// of independent parts, as kiln's own blobs are, on all processors. All bytes are written to sum before they are read, unless it is nil; it
// must not fail. Close waits for a Read of r that is under way, and r must not be used before, except when Read has returned an error.
func UncompressAhead(r io.Reader, sum io.Writer) (io.ReadCloser, error) {
	buf, c, err := detect(r)
	if err != nil {
		return nil, err
	}
	switch c {
	case gzipped:
		z, err := gunzip.NewReader(buf)
		if err != nil {
			return nil, err
		}
		z.Ahead(sum)
		return z, nil
	case zstandard:
		z, err := zstdframes.NewReader(buf, sum, maxZstdWindow)
		if err != nil {
			return nil, err
		}
		return z, nil
	}
	var plain io.Reader = buf
	if sum != nil {
		plain = io.TeeReader(plain, sum)
	}
	return readahead.NewReadCloserSize(io.NopCloser(plain), aheadBlocks, aheadBlock)
}

// What UncompressAhead reads ahead of what is not compressed, in bytes and blocks.
const (
	aheadBlock  = 512 << 10
	aheadBlocks = 3
)
