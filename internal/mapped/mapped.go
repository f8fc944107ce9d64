// Package mapped reads files in place that end in the SHA-256 of all that goes before it, however large, without keeping them
// in memory. It does not know what is in them.
package mapped

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is an open file. It is safe for concurrent use.
type File struct {
	// Data is the file without the digest at its end. It is not to be written to.
	Data    []byte
	whole   []byte
	touched atomic.Int64
}

// ErrDamaged is the error of a file whose end is not the digest of the rest, or that is too large to be read in place.
var ErrDamaged = errors.New("its checksum is wrong")

const maxSize = 1 << 40

// Open opens a file and compares it with its digest.
func Open(name string) (*File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := info.Size()
	if size <= sha256.Size || size > maxSize {
		return nil, ErrDamaged
	}
	// By read(2), since what is touched of a mapping counts as memory of the process.
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{io.LimitReader(f, size-sha256.Size)}, make([]byte, min(256<<10, size))); err != nil {
		return nil, err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", name, err)
	}
	end := size - sha256.Size
	if [sha256.Size]byte(h.Sum(nil)) != [sha256.Size]byte(data[end:]) {
		unix.Munmap(data)
		return nil, ErrDamaged
	}
	return &File{Data: data[:end], whole: data}, nil
}

// Touch is to be called for each place that is looked at, when one follows the other, and Search for each place that is looked for
// from anywhere: that touches many. Every now and then the pages that were read are given back to the kernel, which has them in its cache.
func (f *File) Touch() { f.touch(1) }

// Search is told of with Touch.
func (f *File) Search() { f.touch(searchCost) }

const (
	smallFile  = 8 << 20 // a file that may stay in memory as a whole
	mostTouch  = 1 << 15
	searchCost = 1 << 9 // some ten places, and with each the kernel maps 16 pages
)

func (f *File) touch(cost int64) {
	if len(f.whole) < smallFile {
		return
	}
	if n := f.touched.Add(cost); n/mostTouch != (n-cost)/mostTouch {
		_ = unix.Madvise(f.whole, unix.MADV_DONTNEED) // a matter of memory alone
	}
}

// Close unmaps the file: Data must not be used any more.
func (f *File) Close() error { return unix.Munmap(f.whole) }
