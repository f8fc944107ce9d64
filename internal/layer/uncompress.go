package layer

import (
	"bufio"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Uncompress returns the uncompressed bytes of r, which is gzip, zstd or neither, by what it begins with.
func Uncompress(r io.Reader) (io.ReadCloser, error) {
	buf := bufio.NewReaderSize(r, 64<<10)
	head, err := buf.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		z, err := gzip.NewReader(buf)
		if err != nil {
			return nil, err
		}
		return z, nil
	case len(head) == 4 && string(head) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(buf, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(buf), nil
}

// maxZstdWindow bounds the memory that a zstd stream may ask for: 128 MiB is what zstd itself accepts without --long.
const maxZstdWindow = 128 << 20
