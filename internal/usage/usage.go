// Package usage measures what files take up on disk. It does not know what they are.
package usage

import (
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Of returns how many bytes of the disk a file or directory takes with all that is in it. Of a file with several names each
// name counts its share, so that the sum over everything is right. What is not there, or goes meanwhile, counts nothing.
func Of(path string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			if err == unix.ENOENT {
				return nil
			}
			return &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		sum += Stat(&st)
		return nil
	})
	return sum, err
}

// Stat returns how many bytes of the disk one name of a file takes.
func Stat(st *unix.Stat_t) int64 {
	size := st.Blocks * 512 // stat(2)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		size /= int64(st.Nlink)
	}
	return size
}
