package layer

import (
	"archive/tar"
	"fmt"
	"iter"
	"strings"
	"time"
)

// TarOffsets calls yield with each File of a layer that has bytes, and with where they begin in the tar that WriteLayer writes of the
// entries, until yield returns false. The bytes of the files are not needed. The error says which entry a tar cannot have.
func TarOffsets(entries iter.Seq[*Entry], yield func(e *Entry, offset int64) bool) error {
	at := tarCounter(0)
	for e := range entries {
		if err := writeHeaders(tar.NewWriter(&at), e, layerHeader); err != nil {
			return err
		}
		if e.Type != File || e.Size == 0 {
			continue
		}
		if !yield(e, int64(at)) {
			return nil
		}
		at += tarCounter((e.Size + tarBlock - 1) / tarBlock * tarBlock)
	}
	return nil
}

// tarBlock is what everything in a tar begins at a multiple of, in bytes.
const tarBlock = 512

// tarCounter counts what is written to it.
type tarCounter int64

func (c *tarCounter) Write(p []byte) (int, error) {
	*c += tarCounter(len(p))
	return len(p), nil
}

// writeHeaders writes what precedes the bytes of an entry.
func writeHeaders(tw *tar.Writer, e *Entry, header func(*Entry) *tar.Header) error {
	if err := tw.WriteHeader(header(e)); err != nil {
		return fmt.Errorf("write the tar header of /%s: %w", e.Path, err)
	}
	if !e.Opaque {
		return nil
	}
	opq := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(e.Path+"/"+OpaqueName, "/"), ModTime: time.Unix(0, 0)}
	if err := tw.WriteHeader(opq); err != nil {
		return fmt.Errorf("write the tar header of /%s: %w", e.Path, err)
	}
	return nil
}
