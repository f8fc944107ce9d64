package values

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/internal/termtext"
	"golang.org/x/sys/unix"
)

// CheckDests returns an error if an output cannot be written where it is wanted.
func CheckDests(outputs []build.Output) error {
	for _, o := range outputs {
		var err error
		switch tar := o.Attrs["tar"]; {
		case o.Dest == "":
		case OnStdout(o):
			if termtext.IsTerminal(os.Stdout) {
				err = errors.New("an archive is not written to a terminal: give it a dest=, or redirect standard output")
			}
		case o.Type == build.OutputLocal, o.Type == build.OutputOCI && (tar == "false" || tar == "0"):
			err = checkNewDir(o.Dest)
		default:
			err = CheckArchive(o.Dest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// CheckFile returns an error if a file cannot be made at path, for all that can be seen before there is something to write.
func CheckFile(path string) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("%s is a directory: name a file in it", path)
	case err == nil && access(path, unix.W_OK) == nil && (!info.Mode().IsRegular() || access(filepath.Dir(path), unix.W_OK|unix.X_OK) != nil):
		return nil // it is written to, and not replaced, as what /dev/stdout leads to
	case err == nil && !info.Mode().IsRegular():
		return access(path, unix.W_OK)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return writableDir(filepath.Dir(path))
}

// writableDir returns an error unless files can be made in a directory.
func writableDir(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the directory %s does not exist", path)
	case err == nil && !info.IsDir():
		return fmt.Errorf("%s is not a directory", path)
	case err != nil:
		return err
	}
	return access(path, unix.W_OK|unix.X_OK)
}

// access returns an error unless kiln may use a file in the ways of faccessat(2).
func access(path string, mode uint32) error {
	if err := unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("%s cannot be written to: %w", path, err)
	}
	return nil
}

// CheckArchive is CheckFile for a file that becomes an archive, which is no text for a terminal.
func CheckArchive(path string) error {
	info, err := os.Stat(path)
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return CheckFile(path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if termtext.IsTerminal(f) {
		return fmt.Errorf("an archive is not written to a terminal, which %s is", path)
	}
	return nil
}

// checkNewDir returns an error if path cannot be a directory that files are written to. It need not exist.
func checkNewDir(path string) error {
	there := filepath.Clean(path)
	for {
		_, err := os.Lstat(there)
		missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
		if !missing || there == filepath.Dir(there) {
			return writableDir(there)
		}
		there = filepath.Dir(there)
	}
}
