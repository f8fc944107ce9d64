// Package bigfile writes and reads large files from one end to the other without leaving them in the page cache. It does not
// know what is in them.
//
// The bytes of a layer's blob are mostly written once and not looked at again by this machine. Kept in the page cache they push out what
// is, count as memory of kiln's control group, and each page has to be found and cleared first: where memory was not in use
// before, as in a virtual machine, that takes several times as long as writing to the disk. RWF_DONTCACHE (readv(2), Linux
// 6.14) begins to write at once and uses the same few pages again. kiln waits for the disk at the end of a build anyway.
// Kernels and file systems without it read and write as ever.
package bigfile

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// blockSize is how much is written or read at a time. All but a file's last block end at a multiple of it: half a page
// that was written would have to be read from the disk again for the other half.
const blockSize = 1 << 20

// Writer writes a file from where it is positioned, which must be its beginning. What is written is in the file after Flush. A
// file of less than a block is written as any other. It is for one goroutine.
type Writer struct {
	file   *os.File
	buf    []byte // what is not written yet, less than a block
	offset int64
	plain  bool // the kernel has no RWF_DONTCACHE for this file
	err    error
}

// NewWriter returns a Writer of an empty file, which stays the caller's to close.
func NewWriter(f *os.File) *Writer { return &Writer{file: f} }

// Write implements io.Writer. After an error, which is an *os.PathError, there are only errors.
func (w *Writer) Write(p []byte) (int, error) {
	n := 0
	for w.err == nil && len(w.buf)+len(p)-n >= blockSize {
		block := p[n:]
		if len(w.buf) > 0 {
			k := blockSize - len(w.buf)
			w.buf = append(w.buf, p[n:n+k]...)
			block, n = w.buf, n+k
			w.buf = w.buf[:0]
		} else {
			block = block[:blockSize]
			n += blockSize
		}
		w.err = w.block(block)
	}
	if w.err != nil {
		return n, w.err
	}
	if w.buf == nil && n < len(p) {
		w.buf = make([]byte, 0, min(blockSize, max(len(p)-n, 32<<10)))
	}
	w.buf = append(w.buf, p[n:]...)
	return len(p), nil
}

// Flush writes what is left. It may be called again after more was written, which then costs what blockSize says.
func (w *Writer) Flush() error {
	if w.err == nil && len(w.buf) > 0 {
		w.err = w.write(w.buf, 0)
		w.buf = w.buf[:0]
	}
	return w.err
}

// block writes one block past the page cache.
func (w *Writer) block(p []byte) error {
	if w.plain {
		return w.write(p, 0)
	}
	err := w.write(p, unix.RWF_DONTCACHE)
	if unsupported(err) {
		w.plain = true
		err = w.write(p, 0)
	}
	return err
}

// unsupported says of an error that the kernel or the file system has no RWF_DONTCACHE.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
}

func (w *Writer) write(p []byte, flags int) error {
	for len(p) > 0 {
		var n int
		var err error
		if flags == 0 {
			n, err = unix.Pwrite(int(w.file.Fd()), p, w.offset)
		} else {
			n, err = unix.Pwritev2(int(w.file.Fd()), [][]byte{p}, w.offset, flags)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "write", Path: w.file.Name(), Err: err}
		}
		w.offset += int64(n)
		p = p[n:]
	}
	return nil
}

// Reader reads a file from its beginning. It is for one goroutine.
type Reader struct {
	file   *os.File
	block  []byte
	buf    []byte // what is read and not taken yet
	offset int64
	plain  bool
}

// NewReader returns a Reader of a regular file of size bytes, which it closes.
func NewReader(f *os.File, size int64) *Reader {
	return &Reader{file: f, block: make([]byte, min(blockSize, max(size, 512))), plain: size < blockSize}
}

// Read implements io.Reader. Errors but io.EOF are *os.PathErrors.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.buf) == 0 {
		n, err := r.fill()
		if err != nil {
			return 0, &os.PathError{Op: "read", Path: r.file.Name(), Err: err}
		}
		if n == 0 {
			return 0, io.EOF
		}
		r.buf = r.block[:n]
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

func (r *Reader) fill() (int, error) {
	n, err := read(r.file, r.block, r.offset, r.plain)
	r.offset += int64(n)
	return n, err
}

// read is pread(2), past the page cache unless plain is set or that is not possible.
func read(f *os.File, p []byte, offset int64, plain bool) (int, error) {
	for {
		var n int
		var err error
		if plain {
			n, err = unix.Pread(int(f.Fd()), p, offset)
		} else if n, err = unix.Preadv2(int(f.Fd()), [][]byte{p}, offset, unix.RWF_DONTCACHE); unsupported(err) {
			plain = true
			continue
		}
		if err == unix.EINTR {
			continue
		}
		return max(n, 0), err
	}
}

// Parts reads parts of a file that are large. It is safe for concurrent use.
type Parts struct{ File *os.File }

// ReadAt implements io.ReaderAt.
func (r Parts) ReadAt(p []byte, offset int64) (int, error) {
	for done := 0; ; {
		if done == len(p) {
			return done, nil
		}
		n, err := read(r.File, p[done:], offset+int64(done), false)
		if done += n; err == nil && n == 0 {
			err = io.EOF
		} else if err != nil {
			err = &os.PathError{Op: "read", Path: r.File.Name(), Err: err}
		}
		if err != nil {
			return done, err
		}
	}
}

// Close closes the file.
func (r *Reader) Close() error { return r.file.Close() }
