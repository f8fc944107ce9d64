// Package mapped reads files in place, by mmap(2), that end in the SHA-256 of all that goes before it. It does not know what is in them.
// What is read counts as resident memory of the process, and is the kernel's page cache, which it takes back when it needs memory.
package mapped

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// File is an open file. It is safe for concurrent use.
type File struct {
	// Data is the file without the digest at its end. It is not to be written to.
	Data []byte
	// Modified is when the file was written.
	Modified time.Time
	whole    []byte
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
	// By read(2), which does not map every page of the file into the process.
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
	return &File{Data: data[:end], Modified: info.ModTime(), whole: data}, nil
}

// Close unmaps the file: Data must not be used any more.
func (f *File) Close() error { return unix.Munmap(f.whole) }
