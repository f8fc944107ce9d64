package snapshot

import (
	"crypto/sha256"
	"errors"
	"io"
	"os"

	"github.com/kilnbuild/kiln/internal/layer"
	"golang.org/x/sys/unix"
)

// Files reads the files of one committed layer, with few system calls for each if they come in the order of its entries. It
// is for one goroutine.
type Files struct {
	store *Store
	id    string
	disk  *disk
	buf   []byte
}

// Files returns what reads a layer's files. Close must be called.
func (s *Store) Files(id string) (*Files, error) {
	id, err := s.unpacked(id)
	if err != nil {
		return nil, err
	}
	root, err := s.root(id)
	if err != nil {
		return nil, err
	}
	return &Files{store: s, id: id, disk: newDisk(root, s), buf: make([]byte, 256<<10)}, nil
}

// Close frees the descriptors.
func (f *Files) Close() { f.disk.close() }

// Copy writes the bytes of a File of the layer to w. It fails with a *DamagedError if they are not those that the entry
// speaks of: what w got by then is wrong.
func (f *Files) Copy(w io.Writer, e *layer.Entry) error {
	dir, err := f.disk.parent(e.Path)
	fd := -1
	if err == nil {
		fd, err = openFile(dir.fd(), e.Name())
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return f.store.damaged(f.id, e.Path)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: e.Path, Err: err}
	}
	defer unix.Close(fd)
	h := sha256.New()
	for rest := e.Size; ; {
		n, err := unix.Read(fd, f.buf)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EISDIR || err == unix.EAGAIN {
			return f.store.damaged(f.id, e.Path)
		}
		if err != nil {
			return &os.PathError{Op: "read", Path: e.Path, Err: err}
		}
		if rest -= int64(n); rest < 0 || n == 0 && rest > 0 {
			return f.store.damaged(f.id, e.Path)
		}
		h.Write(f.buf[:n])
		// What is read at once, and is all that there should be, is compared before anybody sees it.
		if n < len(f.buf) && rest == 0 {
			if layer.Digest(h.Sum(nil)) != e.Digest {
				return f.store.damaged(f.id, e.Path)
			}
			_, err := w.Write(f.buf[:n])
			return err
		}
		if _, err := w.Write(f.buf[:n]); err != nil {
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
