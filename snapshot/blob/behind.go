package blob

import (
	"io"
	"sync/atomic"
)

// blockSize is how much is read and written at a time.
const blockSize = 1 << 20

// Behind returns what writes to w in another goroutine: what is read next is read while w hashes and writes. Headers and most files are
// small, so they are gathered to blocks. End must be called.
func Behind(w io.Writer) *Blocks {
	b := &Blocks{full: make(chan []byte), free: make(chan []byte, 2), done: make(chan error, 1), buf: make([]byte, 0, blockSize)}
	b.free <- make([]byte, 0, blockSize)
	go func() {
		var err error
		for p := range b.full {
			if err == nil {
				if _, err = w.Write(p); err != nil {
					failed := err
					b.failed.Store(&failed)
				}
			}
			b.free <- p[:0]
		}
		b.done <- err
	}()
	return b
}

// End waits until all is written, which if not all means what is in the last block as well, and returns the error of a Write.
func (b *Blocks) End(all bool) error {
	b.ended = true
	if all {
		b.full <- b.buf
	}
	close(b.full)
	return <-b.done
}

// Blocks gathers what is written and passes it on in blocks of blockSize.
type Blocks struct {
	full, free chan []byte
	done       chan error
	buf        []byte
	failed     atomic.Pointer[error] // of the writer, which takes no more
	ended      bool
}

// Write implements io.Writer.
func (b *Blocks) Write(p []byte) (int, error) {
	for n := 0; ; {
		k := copy(b.buf[len(b.buf):cap(b.buf)], p[n:])
		b.buf = b.buf[:len(b.buf)+k]
		if n += k; n == len(p) {
			return n, nil
		}
		if err := b.failed.Load(); err != nil {
			return n, *err
		}
		b.full <- b.buf
		b.buf = <-b.free
	}
}
