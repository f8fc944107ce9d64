package received

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/internal/layer"
)

// maxBuffered is how many bytes of a file are kept in memory before it is written.
const maxBuffered = 64 << 10

// File is a file that is being received. It belongs to one goroutine.
type File struct {
	cache *Cache
	sum   hash.Hash
	size  int64
	// start is what was not written yet, and rest what is written; nil for a file that fits into start.
	start []byte
	rest  *os.File
}

// Create begins a file. Commit or Abort must be called.
func (c *Cache) Create() *File { return &File{cache: c, sum: sha256.New()} }

// Write implements io.Writer.
func (f *File) Write(p []byte) (int, error) {
	f.sum.Write(p)
	f.size += int64(len(p))
	if len(f.start)+len(p) <= maxBuffered {
		f.start = append(f.start, p...)
		return len(p), nil
	}
	if err := f.flush(); err != nil {
		return 0, err
	}
	return f.rest.Write(p)
}

// flush writes what is in memory.
func (f *File) flush() error {
	if f.rest == nil {
		if err := f.cache.working(); err != nil {
			return err
		}
		rest, err := os.CreateTemp(f.cache.tmp, "received-")
		if err != nil {
			return err
		}
		f.rest = rest
	}
	_, err := f.rest.Write(f.start)
	f.start = f.start[:0]
	return err
}

// Size returns the number of bytes so far.
func (f *File) Size() int64 { return f.size }

// Commit ends the file, puts it into the cache, and returns its digest.
func (f *File) Commit() (layer.Digest, error) {
	d := layer.Digest(f.sum.Sum(nil))
	path := f.cache.file(d)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Size() == f.size {
		return d, f.Abort()
	}
	if err := f.flush(); err != nil {
		return d, errors.Join(err, f.Abort())
	}
	name := f.rest.Name()
	err := f.rest.Close()
	f.rest = nil
	if err == nil {
		err = os.Rename(name, path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = os.Rename(name, path)
		}
	}
	if err != nil {
		return d, errors.Join(err, os.Remove(name))
	}
	return d, nil
}

// Abort throws the file away.
func (f *File) Abort() error {
	if f.rest == nil {
		return nil
	}
	err := errors.Join(f.rest.Close(), os.Remove(f.rest.Name()))
	f.rest = nil
	return err
}
