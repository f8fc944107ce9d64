// Package regularfile reads small files that have to be regular: opening one never waits for the writer of a named pipe, and no more than
// a limit is read.
package regularfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/termtext"
)

// errKind is returned for a file that is not regular.
var errKind = errors.New("it is not a regular file")

func check(info fs.FileInfo, path string, limit int64) error {
	if !info.Mode().IsRegular() {
		return &fs.PathError{Op: "open", Path: path, Err: errKind}
	}
	if info.Size() > limit {
		return &TooLargeError{path, limit}
	}
	return nil
}

// TooLargeError is a file that is larger than a limit in bytes.
type TooLargeError struct {
	Path  string
	Limit int64
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s is larger than the %s that are allowed", e.Path, termtext.Size(e.Limit))
}

// Read returns the content of the file at path, which has at most limit bytes.
func Read(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return ReadFrom(f, path, limit)
}

// ReadFrom returns the content of f, which errors call path, and closes it.
func ReadFrom(f *os.File, path string, limit int64) ([]byte, error) {
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := check(info, path, limit); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = &TooLargeError{path, limit} // it has grown
	}
	return data, err
}
