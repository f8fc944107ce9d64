// Package mapped reads files in place, with mmap(2), that end in the SHA-256 digest of their contents. It does not know the
// format of the contents. Mapped pages count as resident memory of the process, but belong to the kernel's page cache, which the
// kernel reclaims when it needs memory.
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
	// Data is the file's contents without the digest at the end. It must not be modified.
	Data []byte
	// Modified is the time at which the file was written.
	Modified time.Time
	whole    []byte
}

// ErrDamaged is returned for a file that does not end in the digest of its contents, or is too large to be mapped.
var ErrDamaged = errors.New("its checksum is wrong")

const maxSize = 1 << 40

// Open opens a file and verifies its digest.
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
	// Use read(2), which does not map every page of the file into the process.
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

// Close unmaps the file. Data must not be used afterwards.
func (f *File) Close() error { return unix.Munmap(f.whole) }
