// Package usage measures what files take up on disk. It does not know what they are.
package usage

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/dirtree"
	"golang.org/x/sys/unix"
)

// Of returns how many bytes on disk a file uses, or a directory with everything in it. Each name of a file with several names counts
// its share, so that the sum over all names is right. Files that do not exist, or are removed meanwhile, count as 0. Only the names of
// the directories on the current path are kept in memory. It stops when ctx ends.
func Of(ctx context.Context, path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, ignoreGone(&fs.PathError{Op: "stat", Path: path, Err: err})
	}
	sum := Stat(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return sum, nil
	}
	top, err := os.OpenFile(path, unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if err != nil {
		return sum, ignoreGone(err)
	}
	at := dirtree.NewDescent(top)
	defer at.Close()
	// rest has for each directory on the way the names of those in it that are still to be measured.
	rest := make([][]string, 0, 64)
	dirs, err := measure(ctx, at.File(), &sum)
	for rest = append(rest, dirs); err == nil && len(rest) > 0; {
		last := len(rest) - 1
		if len(rest[last]) == 0 {
			if rest = rest[:last]; last > 0 {
				err = at.Leave()
			}
			continue
		}
		name := rest[last][0]
		rest[last] = rest[last][1:]
		if err = at.Enter(name); err == nil {
			if dirs, err = measure(ctx, at.File(), &sum); err == nil {
				rest = append(rest, dirs)
			}
		}
		err = ignoreGone(err)
	}
	if err != nil {
		err = &fs.PathError{Op: "measure", Path: path, Err: err}
	}
	return sum, err
}

// ignoreGone returns err unless it says that a file does not exist, or is no longer a directory.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}

// measure adds what is in a directory to sum, and returns the names of the directories in it.
func measure(ctx context.Context, dir *os.File, sum *int64) ([]string, error) {
	var dirs []string
	for {
		if err := ctxio.Ended(ctx); err != nil {
			return nil, err
		}
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
				continue
			} else if err != nil {
				return nil, err
			}
			*sum += Stat(&st)
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				dirs = append(dirs, name)
			}
		}
		if err == io.EOF || errors.Is(err, fs.ErrNotExist) {
			return dirs, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// Stat returns how many bytes on disk one name of a file accounts for.
func Stat(st *unix.Stat_t) int64 {
	size := st.Blocks * 512 // stat(2)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		size /= int64(st.Nlink)
	}
	return size
}
