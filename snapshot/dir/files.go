package dir

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"golang.org/x/sys/unix"
)

// Files reads the files of one committed layer. Reading them in the order of the layer's entries takes few system calls. It
// implements layer.Files, and is safe for concurrent use.
type Files struct {
	fs   *FS
	id   layer.ID
	root *rootfs.Root
	own  map[string]bool // paths that are in root, except directories; nil for all
	base *Files          // has the other paths; nil if there are none

	mu   sync.Mutex
	free []*reader // readers not in use
}

// DamagedError is returned when a file of a layer was modified after the layer was made.
type DamagedError struct {
	ID layer.ID
	// Path is the path of the file in the layer.
	Path string
	// Blob reports that instead of a file, the blob that the files are made from was modified.
	Blob bool
}

func (e *DamagedError) Error() string {
	what := "/" + e.Path
	if e.Blob {
		what = "the blob"
	}
	return fmt.Sprintf("%s of layer %.12s was modified on disk; the layer was discarded, and the next build makes it again", what, e.ID)
}

// Unwrap returns layer.ErrDamaged.
func (e *DamagedError) Unwrap() error { return layer.ErrDamaged }

// OpenFiles opens the files of the layer id in dir. If the layer is a delta, base are the files of its base and own the paths
// that are in dir itself: see Differing. The caller keeps ownership of base, and must call Close.
func (f *FS) OpenFiles(id layer.ID, dir string, own map[string]bool, base *Files) (*Files, error) {
	root, err := rootfs.Open(dir)
	if err != nil {
		return nil, err
	}
	return &Files{fs: f, id: id, root: root, own: own, base: base}, nil
}

// at returns the Files whose directory contains path: f or its base.
func (f *Files) at(path string) *Files {
	if f.base == nil || f.own[path] {
		return f
	}
	return f.base
}

// Close frees the descriptors.
func (f *Files) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.free {
		r.from.Close()
	}
	f.free = nil
	f.root.Close()
}

func (f *Files) damaged(path string) error { return &DamagedError{ID: f.id, Path: path} }

// Open implements layer.Files. If the file does not match the entry, the error is a *DamagedError.
func (f *Files) Open(e *layer.Entry) (io.ReadCloser, error) {
	at := f.at(e.Path)
	file, err := at.root.OpenNoSymlinks(e.Path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, at.damaged(e.Path)
	}
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() != e.Size) {
		err = at.damaged(e.Path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return &verifiedFile{ReadCloser: file, hash: sha256.New(), layer: at, path: e.Path, digest: e.Digest}, nil
}

// verifiedFile is a file of a layer whose bytes are compared with the manifest while it is read. It does not expose methods of
// the file that would bypass the comparison.
type verifiedFile struct {
	io.ReadCloser
	hash   hash.Hash
	layer  *Files
	path   string
	digest layer.Digest
}

func (v *verifiedFile) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	v.hash.Write(p[:n])
	if err == io.EOF && layer.Digest(v.hash.Sum(nil)) != v.digest {
		err = v.layer.damaged(v.path)
	}
	return n, err
}

// Names implements layer.Files.
func (f *Files) Names(path string) (int, error) {
	file, err := f.at(path).root.OpenNoSymlinks(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	var st unix.Stat_t
	err = unix.Fstat(int(file.Fd()), &st)
	return int(st.Nlink), err
}

// reader is the state with which one goroutine reads files.
type reader struct {
	from *Writer // used for its open directories
	buf  []byte
}

// take returns a reader for exclusive use until it is given back.
func (f *Files) take() *reader {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.free); n > 0 {
		r := f.free[n-1]
		f.free = f.free[:n-1]
		return r
	}
	return &reader{from: f.fs.NewWriter(f.root), buf: make([]byte, 256<<10)}
}

func (f *Files) give(r *reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free = append(f.free, r)
}

// Copy writes the bytes of a File of the layer to w. If they do not match the entry it fails with a *DamagedError, and the bytes
// written to w by then are wrong.
func (f *Files) Copy(w io.Writer, e *layer.Entry) error {
	if at := f.at(e.Path); at != f {
		return at.Copy(w, e)
	}
	r := f.take()
	defer f.give(r)
	dir, err := r.from.parent(e.Path)
	fd := -1
	if err == nil {
		fd, err = openFile(dir.fd(), e.Name())
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return f.damaged(e.Path)
	}
	if err != nil {
		return &layer.FileError{Op: "open", Path: e.Path, Err: err}
	}
	defer unix.Close(fd)
	h := sha256.New()
	for rest := e.Size; ; {
		n, err := unix.Read(fd, r.buf)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EISDIR || err == unix.EAGAIN {
			return f.damaged(e.Path)
		}
		if err != nil {
			return &layer.FileError{Op: "read", Path: e.Path, Err: err}
		}
		if rest -= int64(n); rest < 0 || n == 0 && rest > 0 {
			return f.damaged(e.Path)
		}
		h.Write(r.buf[:n])
		// A file that fits into the buffer is compared before its bytes are written.
		if n < len(r.buf) && rest == 0 {
			if layer.Digest(h.Sum(nil)) != e.Digest {
				return f.damaged(e.Path)
			}
			_, err := w.Write(r.buf[:n])
			return err
		}
		if _, err := w.Write(r.buf[:n]); err != nil {
			return err
		}
	}
}

// openFile opens a file for reading. It does not follow a symbolic link, and does not block if the file is not a regular one.
func openFile(dir int, name string) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
