package layer

import (
	"bufio"
	"errors"
	"io"

	"github.com/kilnbuild/kiln/internal/gunzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/readahead"
)

// Uncompress returns a reader of the uncompressed bytes of r, which may be gzip, zstd or uncompressed, depending on its first
// bytes. For gzip it is a *gunzip.Reader.
func Uncompress(r io.Reader) (io.ReadCloser, error) {
	buf := bufio.NewReaderSize(r, 64<<10)
	head, err := buf.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		z, err := gunzip.NewReader(buf)
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

// maxZstdWindow limits the memory that a zstd stream may require: zstd itself accepts 128 MiB without --long.
const maxZstdWindow = 128 << 20

// What UncompressAhead reads ahead of what is not gzip, in bytes and blocks.
const (
	aheadBlock  = 512 << 10
	aheadBlocks = 3
)

// UncompressAhead is like Uncompress, but reads and decompresses in a goroutine of its own, up to 2 MiB before the bytes are read. All of
// them are written to sum before they are read, unless it is nil; it must not fail. Close waits for a Read of r that is under way, and r
// must not be used before, except when Read has returned an error.
func UncompressAhead(r io.Reader, sum io.Writer) (io.ReadCloser, error) {
	plain, err := Uncompress(r)
	if err != nil {
		return nil, err
	}
	if z, ok := plain.(*gunzip.Reader); ok {
		z.Ahead(sum)
		return z, nil
	}
	if sum != nil {
		plain = teeCloser{io.TeeReader(plain, sum), plain}
	}
	ahead, err := readahead.NewReadCloserSize(plain, aheadBlocks, aheadBlock)
	if err != nil {
		plain.Close()
		return nil, err
	}
	return ahead, nil
}

type teeCloser struct {
	io.Reader
	io.Closer
}
