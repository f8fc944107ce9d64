package snapshot

import (
	"crypto/sha256"
	"errors"
	"io"
	"iter"
	"os"
	"sync"

	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// Files reads the files of one committed layer, with few system calls for each if they come about in the order of its entries. It is
// safe for concurrent use.
type Files struct {
	store *Store
	files *layerFiles
	mu    sync.Mutex
	free  []*fileReader // as many as were ever used at once
}

// fileReader is what one goroutine reads files with.
type fileReader struct {
	own, under *disk
	buf        []byte
}

// Files returns what reads a layer's files. Close must be called.
func (s *Store) Files(id string) (*Files, error) {
	m, err := s.Manifest(id)
	if err != nil {
		return nil, err
	}
	if id, err = s.unpacked(id); err != nil {
		return nil, err
	}
	files, err := s.filesOf(id, m)
	if err != nil {
		return nil, err
	}
	return &Files{store: s, files: files}, nil
}

// Close frees the descriptors.
func (f *Files) Close() {
	for _, r := range f.free {
		r.own.close()
		if r.under != nil {
			r.under.close()
		}
	}
}

// Tar yields the entries of the layer's manifest with what writes their bytes, for layer.WriteTar.
func (f *Files) Tar(m *layer.Manifest) iter.Seq2[*layer.Entry, layer.Body] {
	return func(yield func(*layer.Entry, layer.Body) bool) {
		for e := range m.All() {
			if !yield(e, func(w io.Writer) error { return f.Copy(w, e) }) {
				return
			}
		}
	}
}

// take returns a reader that nobody else uses until it is given back.
func (f *Files) take() *fileReader {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.free); n > 0 {
		r := f.free[n-1]
		f.free = f.free[:n-1]
		return r
	}
	r := &fileReader{own: newDisk(f.files.root, f.store), buf: make([]byte, 256<<10)}
	if f.files.under != nil {
		r.under = newDisk(f.files.under.root, f.store)
	}
	return r
}

func (f *Files) give(r *fileReader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free = append(f.free, r)
}

// Copy writes the bytes of a File of the layer to w. It fails with a *DamagedError if they are not those that the entry
// speaks of: what w got by then is wrong.
func (f *Files) Copy(w io.Writer, e *layer.Entry) error {
	r := f.take()
	defer f.give(r)
	at, d := f.files.at(e.Path), r.own
	if at != f.files {
		d = r.under
	}
	dir, err := d.parent(e.Path)
	fd := -1
	if err == nil {
		fd, err = openFile(dir.fd(), e.Name())
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return f.store.damaged(at.id, e.Path)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: e.Path, Err: err}
	}
	defer unix.Close(fd)
	h := sha256.New()
	for rest := e.Size; ; {
		n, err := unix.Read(fd, r.buf)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EISDIR || err == unix.EAGAIN {
			return f.store.damaged(at.id, e.Path)
		}
		if err != nil {
			return &os.PathError{Op: "read", Path: e.Path, Err: err}
		}
		if rest -= int64(n); rest < 0 || n == 0 && rest > 0 {
			return f.store.damaged(at.id, e.Path)
		}
		h.Write(r.buf[:n])
		// What is read at once, and is all that there should be, is compared before anybody sees it.
		if n < len(r.buf) && rest == 0 {
			if layer.Digest(h.Sum(nil)) != e.Digest {
				return f.store.damaged(at.id, e.Path)
			}
			_, err := w.Write(r.buf[:n])
			return err
		}
		if _, err := w.Write(r.buf[:n]); err != nil {
			return err
		}
	}
}

// openFile opens a file for reading, never through a symbolic link and without waiting for what is no regular file.
func openFile(dir int, name string) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
