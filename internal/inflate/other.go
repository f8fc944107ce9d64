//go:build !amd64 && !arm64

package inflate

import (
	"bufio"
	"errors"
	"io"

	"github.com/klauspost/compress/flate"
)

// Slack is how many bytes of a buffer Decode needs.
const Slack = 1

// Decoder decodes DEFLATE streams, one at a time. It is not safe for concurrent use.
type Decoder struct {
	src *bufio.Reader
	r   io.ReadCloser
}

// NewDecoder returns a Decoder of the stream at which src is.
func NewDecoder(src *bufio.Reader) *Decoder { return &Decoder{src, flate.NewReader(src)} }

// Reset begins another stream, at which the source is now.
func (d *Decoder) Reset() {
	_ = d.r.(flate.Resetter).Reset(d.src, nil) // it never fails
}

// Decode decodes into buf[from:] and returns where in buf its output ends. At the end of the stream the error is io.EOF, and the source is
// at the byte after it. If the source ends before, the error is io.ErrUnexpectedEOF; if the stream is invalid, it is a CorruptError.
// Other errors are those of the source.
func (d *Decoder) Decode(buf []byte, from int) (int, error) {
	for from < len(buf) {
		n, err := d.r.Read(buf[from:])
		from += n
		if corrupt, ok := errors.AsType[flate.CorruptInputError](err); ok {
			err = CorruptError(corrupt)
		}
		if err != nil {
			return from, err
		}
	}
	return from, nil
}
