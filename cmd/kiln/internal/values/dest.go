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
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return nil // a link to nothing is replaced
	}
	above, err := os.Stat(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the directory %s does not exist", filepath.Dir(path))
	}
	if err == nil && !above.IsDir() {
		err = fmt.Errorf("%s is not a directory", filepath.Dir(path))
	}
	return err
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
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil && !info.IsDir():
		return fmt.Errorf("%s is not a directory", path)
	}
	return err
}
