// Package inflate decodes DEFLATE streams (RFC 1951), more than twice as fast as compress/flate and its relatives on amd64 and arm64.
//
// As long as enough input and output is left, symbols are decoded by a loop that need not check either. It loads 64 bits at a time from any
// address, and is the only code of kiln that uses package unsafe for speed. Near the end of what the source has at hand, another loop takes
// it byte by byte. Where words cannot be loaded that way, the package is an adapter of github.com/klauspost/compress.
package inflate

import "strconv"

// Window is how far back in its output a stream can refer, in bytes.
const Window = 32 << 10

// CorruptError is the error of a stream that is not valid: the number of bytes that were read of it until that was found.
type CorruptError int64

func (e CorruptError) Error() string {
	return "the compressed data is corrupt before byte " + strconv.FormatInt(int64(e), 10)
}
