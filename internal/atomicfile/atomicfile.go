// Package atomicfile replaces files as a whole: what is written gets its name when it is complete, so nobody ever sees half of it. Nothing
// is synchronised to disk; a file that must survive a crash of the machine says itself whether it is whole.
package atomicfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// bufferSize is how much is gathered before it is written, in bytes: what is large is written in blocks anyway.
const bufferSize = 64 << 10

// Write replaces the file called path by what write writes. The file, with mode 0600, is made in tmp, a directory of this process on the
// same file system.
func Write(path, tmp string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(tmp, filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	if err = errors.Join(fill(f, write), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// WriteBytes is Write of data.
func WriteBytes(path, tmp string, data []byte) error {
	return Write(path, tmp, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// Symlink replaces the file called path by a symbolic link, which is made in tmp as by Write.
func Symlink(target, path, tmp string) error {
	temp := filepath.Join(tmp, fmt.Sprintf("%s-%x", filepath.Base(path), rand.Uint64()))
	err := os.Symlink(target, temp)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
	}
	return err
}

// WriteAt replaces the file called name in a directory of the user's by what write writes, by way of a file beside it. A file that is there
// keeps its permissions; else the umask decides, as for each file that a program makes. A device, named pipe or socket is not replaced.
func WriteAt(dir *os.File, name string, write func(io.Writer) error) error {
	f, temp, err := createAt(dir, name)
	if err != nil {
		return err
	}
	err = fill(f, write)
	var st unix.Stat_t
	if there := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && there == nil {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			err = f.Chmod(os.FileMode(st.Mode & 0o777))
		case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
			err = &os.PathError{Op: "replace", Path: filepath.Join(dir.Name(), name), Err: errSpecial}
		}
	}
	if err = errors.Join(err, f.Close()); err == nil {
		if err = unix.Renameat(int(dir.Fd()), temp, int(dir.Fd()), name); err != nil {
			err = &os.PathError{Op: "replace", Path: filepath.Join(dir.Name(), name), Err: err}
		}
	}
	if err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), temp, 0)
	}
	return err
}

// errSpecial is returned for a file that WriteAt does not replace.
var errSpecial = errors.New("it is a device, a named pipe or a socket, which is not replaced")

// fill has write write to a file.
func fill(f *os.File, write func(io.Writer) error) error {
	w := bufio.NewWriterSize(f, bufferSize)
	if err := write(w); err != nil {
		return err
	}
	return w.Flush()
}

// createAt makes a file with a name of its own beside the one called name, by which errors call it.
func createAt(dir *os.File, name string) (f *os.File, temp string, err error) {
	for {
		temp = "." + name + "-" + strconv.FormatUint(uint64(rand.Uint32()), 10)
		path := filepath.Join(dir.Name(), name)
		fd, err := unix.Openat(int(dir.Fd()), temp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o666)
		switch err {
		case nil:
			return os.NewFile(uintptr(fd), path), temp, nil
		case unix.EEXIST, unix.EINTR:
		default:
			return nil, "", &os.PathError{Op: "create", Path: filepath.Join(dir.Name(), name), Err: err}
		}
	}
}
