package main

import (
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/report"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/parser"
	"github.com/kilnbuild/kiln/progress"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/solver"
	"github.com/spf13/cobra"
)

// Exit statuses, besides 128 + the number of a signal.
const (
	exitFailed   = 1
	exitUsage    = 2
	exitInternal = 125
)

// usageError is a command line that cannot be carried out as it is written.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usageErrorf(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// internalError is a failure of kiln itself: its configuration, its store.
type internalError struct{ err error }

func (e *internalError) Error() string { return e.err.Error() }
func (e *internalError) Unwrap() error { return e.err }

// progressError is an error of something whose progress was shown, and what failed on the way.
type progressError struct {
	err      error
	failures *progress.Failures
}

func (e *progressError) Error() string { return e.err.Error() }
func (e *progressError) Unwrap() error { return e.err }

// buildError is a failed build, with what is needed to quote its Dockerfile.
type buildError struct {
	err        error
	dockerfile report.Dockerfile
}

func (e *buildError) Error() string { return e.err.Error() }
func (e *buildError) Unwrap() error { return e.err }

// errFound is a check that found something and has printed it.
var errFound = errors.New("the check has found something")

// flagError turns an error of the flag parser into a usage error. That of an unsupported flag is the message itself.
func flagError(cmd *cobra.Command, err error) error {
	if u, ok := errors.AsType[*input.Error](err); ok {
		return u
	}
	return usageErrorf("%w; see %s --help", err, cmd.CommandPath())
}

func exitStatus(err error) int {
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*input.Error](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*internalError](err); ok {
		return exitInternal
	}
	// A Dockerfile is not at fault for a step that fails, or for a server that does not give an image or a source.
	if _, ok := errors.AsType[*parser.Error](err); ok && !errors.As(err, new(*solver.VertexError)) && !errors.As(err, new(*registry.Error)) &&
		!errors.As(err, new(*contexts.SourceError)) {
		return exitUsage
	}
	return exitFailed
}

// complain prints one line.
func (a *app) complain(text string) {
	_, _ = fmt.Fprintf(a.stderr, "kiln: %s\n", termtext.Line(text))
}

// printError prints what went wrong in one line, then the lines of the Dockerfile, then the last lines of the log of the
// step that failed, as far as there are any.
func (a *app) printError(err error) {
	if errors.Is(err, errFound) {
		return
	}
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range several.Unwrap() {
			a.printError(err)
		}
		return
	}
	var dockerfile report.Dockerfile
	if b, ok := errors.AsType[*buildError](err); ok {
		dockerfile = b.dockerfile
	}
	var failures *progress.Failures
	if p, ok := errors.AsType[*progressError](err); ok {
		failures = p.failures
	}
	line, more := report.Failure(err, dockerfile, failures)
	a.complain(line)
	_, _ = a.stderr.Write(more)
}
