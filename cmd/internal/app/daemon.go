package app

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/store"
)

// Frontends makes what runs frontends that are images for a Builder, which keeps what it builds in root. say tells the user something.
type Frontends func(b *build.Builder, root *store.Root, say func(text string)) (build.Frontends, error)

// daemonName is the program that serves BuildKit's API, and that runs frontends which are images. It is another one, since what it is made
// of would make each start of kiln slower.
const daemonName = "kilnd"

// AsKiln is the first argument of kilnd that makes it do what kiln does with the others.
const AsKiln = "kiln"

// MissingError says that kilnd is not where it belongs.
type MissingError struct{ Path string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("there is no %s: it is a program of its own, which make build makes beside kiln", e.Path)
}

// ExecDaemon executes kilnd, which lies beside kiln, in place of this process. It returns only with an error: a *MissingError if there is
// none.
func ExecDaemon(args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return &InternalError{Err: err}
	}
	path := filepath.Join(filepath.Dir(self), daemonName)
	err = syscall.Exec(path, slices.Concat([]string{daemonName}, args), os.Environ())
	if errors.Is(err, fs.ErrNotExist) {
		return &MissingError{path}
	}
	return fmt.Errorf("execute %s: %w", path, err)
}

// HandOver has kilnd carry out the command line in place of this process if mayNeed says that frontends may be needed that are images, and
// they are allowed: by the flag that granted is, or by kiln.toml. It is called before anything is read of standard input. It returns nil if
// this process is to go on. Without a kilnd it does, and says so if the frontends are needed.
func (a *App) HandOver(granted bool, mayNeed func() bool) error {
	if a.Frontends != nil || userns.Inside() {
		return nil
	}
	if !granted {
		cfg, err := a.Configuration()
		if err != nil || !cfg.Frontends {
			return nil // whoever opens the root directory says what is wrong
		}
	}
	if !mayNeed() {
		return nil
	}
	err := ExecDaemon(append([]string{AsKiln}, os.Args[1:]...)...)
	if errors.As(err, new(*MissingError)) {
		return nil
	}
	return err
}
