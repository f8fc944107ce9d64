package blob

import (
	"fmt"
	"io"
	"iter"
	"strconv"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/suggest"
)

// Encoding is how a layer that a step made is written as a blob.
type Encoding struct {
	Compression
	// Rewrite has times of files that are later than Epoch, in Unix seconds, written as Epoch.
	Rewrite bool
	Epoch   int64
	// All has the earlier ones written as Epoch too, if Rewrite is set.
	All bool
	// Windows is set for layers of Windows images.
	Windows bool
}

func (f Encoding) String() string {
	s := f.Compression.String()
	if f.Rewrite {
		s += epochEncoding + strconv.FormatInt(f.Epoch, 10)
		if f.All {
			s += allEncoding
		}
	}
	if f.Windows {
		s += windowsEncoding
	}
	return s
}

// epochEncoding and allEncoding are in the names of encodings that have other times than the manifest.
const (
	epochEncoding = ".epoch"
	allEncoding   = ".all" // behind the epoch
)

// windowsEncoding ends the names of encodings for Windows, whose tars do not have the files where the manifest has them.
const windowsEncoding = ".windows"

// WriteTar writes the tar of a layer in this encoding.
func (f Encoding) WriteTar(w io.Writer, entries iter.Seq2[*layer.Entry, layer.Body]) error {
	if f.Windows {
		return layer.WriteWindowsTar(w, f.entries(entries))
	}
	return layer.WriteLayer(w, f.entries(entries))
}

// Plain returns the same encoding without compression.
func (f Encoding) Plain() Encoding {
	f.Compression = Uncompressed
	return f
}

// entries returns those of a tar as they are written in this encoding.
func (f Encoding) entries(all iter.Seq2[*layer.Entry, layer.Body]) iter.Seq2[*layer.Entry, layer.Body] {
	if !f.Rewrite {
		return all
	}
	epoch := time.Unix(f.Epoch, 0)
	return func(yield func(*layer.Entry, layer.Body) bool) {
		for e, body := range all {
			if f.All || e.ModTime.After(epoch) {
				rewritten := *e
				rewritten.ModTime = epoch
				e = &rewritten
			}
			if !yield(e, body) {
				return
			}
		}
	}
}

// Compression is what layers are compressed with.
type Compression struct {
	// Type is "uncompressed", "gzip" or "zstd".
	Type string
	// Level is that of the compressor; -1 for its default.
	Level int
}

// Uncompressed leaves layers as they are.
var Uncompressed = Compression{Type: "uncompressed", Level: -1}

func (c Compression) String() string {
	if c.Level < 0 {
		return c.Type
	}
	return c.Type + "-" + strconv.Itoa(c.Level)
}

// Compressions are what the key compression of an output can be.
var Compressions = []string{"gzip", "zstd", "uncompressed"}

// ParseCompression reads the keys compression and compression-level of an output.
func ParseCompression(kind, level string) (Compression, error) {
	c := Compression{Type: kind, Level: -1}
	limit := 0
	switch kind {
	case "", "gzip":
		c.Type, limit = "gzip", 9
	case "uncompressed":
	case "zstd":
		limit = 22
	default:
		return c, fmt.Errorf("compression=%s is not supported: use uncompressed, gzip or zstd%s", kind, suggest.Hint(kind, Compressions...))
	}
	if level == "" {
		return c, nil
	}
	n, err := strconv.Atoi(level)
	if err != nil || n < 0 || n > limit {
		return c, fmt.Errorf("compression-level=%s of %s is not between 0 and %d", level, c.Type, limit)
	}
	c.Level = n
	return c, nil
}
