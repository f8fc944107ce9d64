// Package cli is the command line of kiln: the list of commands, and those for the root directory as a whole. It does not know how anything
// is done. It is a package of its own since two programs have it: kiln, and kilnd where that is called as kiln.
package cli

import (
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/internal/userns"
)

// gcPercent is GOGC where the user has not set it. A build is short and keeps little in memory, so collecting at twice
// the live heap, Go's default, is a fifth of its processor time.
const gcPercent = 200

// Main carries out a command line, that of this process, and returns its exit status. frontends may be nil.
func Main(args []string, frontends app.Frontends) int {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	dropRelativePath()
	a := app.New(os.Stdout, os.Stderr)
	a.Frontends = frontends
	if err := userns.Enter(); err != nil {
		if !errors.Is(err, userns.ErrOrphan) {
			a.Complain(err.Error())
		}
		return app.ExitInternal
	}
	// Secrets, credentials and what steps print are in kiln's memory: no other process of the user may read it, and no core dump has
	// it. Only now, since a kiln that starts another in a user namespace has to write to files of that in /proc.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // it cannot fail with these arguments
	return run(a, args)
}

// dropRelativePath takes directories out of $PATH that are relative: programs are not looked for where the user happens to be, which may
// be the context of somebody else.
func dropRelativePath() {
	path := filepath.SplitList(os.Getenv("PATH"))
	if kept := slices.DeleteFunc(slices.Clone(path), func(dir string) bool { return !filepath.IsAbs(dir) }); len(kept) < len(path) {
		_ = os.Setenv("PATH", strings.Join(kept, string(filepath.ListSeparator))) // it fails for names that are none
	}
}
