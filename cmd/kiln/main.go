// Kiln builds OCI images from Dockerfiles. This package is its command line: flags, the terminal, exit statuses. It does not
// know how anything is done.
package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/cmd/kiln/internal/app"
	"github.com/kilnbuild/kiln/internal/userns"
)

// gcPercent is GOGC where the user has not set it. A build is short and keeps little in memory, so collecting at twice
// the live heap, Go's default, is a fifth of its processor time.
const gcPercent = 200

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	dropRelativePath()
	a := app.New(os.Stdout, os.Stderr)
	if err := userns.Enter(); err != nil {
		if !errors.Is(err, userns.ErrOrphan) {
			a.Complain(err.Error())
		}
		os.Exit(app.ExitInternal)
	}
	// Secrets, credentials and what steps print are in kiln's memory: no other process of the user may read it, and no core dump has
	// it. Only now, since a kiln that starts another in a user namespace has to write to files of that in /proc.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // it cannot fail with these arguments
	os.Exit(run(a, os.Args[1:]))
}

// dropRelativePath takes directories out of $PATH that are relative: programs are not looked for where the user happens to be, which may
// be the context of somebody else.
func dropRelativePath() {
	path := filepath.SplitList(os.Getenv("PATH"))
	if kept := slices.DeleteFunc(slices.Clone(path), func(dir string) bool { return !filepath.IsAbs(dir) }); len(kept) < len(path) {
		_ = os.Setenv("PATH", strings.Join(kept, string(filepath.ListSeparator))) // it fails for names that are none
	}
}
