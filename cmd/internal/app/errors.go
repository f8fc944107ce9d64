package app

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/parser"
	"github.com/kilnbuild/kiln/progress"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/solver"
)

// Exit statuses, besides 128 + the number of a signal.
const (
	ExitFailed   = 1
	ExitUsage    = 2
	ExitInternal = 125
	// exitUnread is that of SIGPIPE.
	exitUnread = 128 + int(syscall.SIGPIPE)
)

// unread reports whether err says that nobody reads standard output any more, as after "| head". That is for whoever stopped to explain.
func unread(err error) bool {
	p, ok := errors.AsType[*fs.PathError](err)
	return ok && p.Path == os.Stdout.Name() && errors.Is(p, syscall.EPIPE)
}

// UsageError is a command line that cannot be carried out as it is written.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// UsageErrorf returns a *UsageError.
func UsageErrorf(format string, args ...any) error {
	return &UsageError{fmt.Errorf(format, args...)}
}

// InternalError is a failure of kiln itself: its configuration, its store.
type InternalError struct{ Err error }

func (e *InternalError) Error() string { return e.Err.Error() }
func (e *InternalError) Unwrap() error { return e.Err }

// StatusError is an error with an exit status of its own.
type StatusError struct {
	Err    error
	Status int
}

func (e *StatusError) Error() string { return e.Err.Error() }
func (e *StatusError) Unwrap() error { return e.Err }

// ProgressError is an error of something whose progress was shown, and what failed on the way.
type ProgressError struct {
	Err      error
	Failures *progress.Failures
}

func (e *ProgressError) Error() string { return e.Err.Error() }
func (e *ProgressError) Unwrap() error { return e.Err }

// BuildError is a failed build, with what is needed to quote its Dockerfile.
type BuildError struct {
	err        error
	dockerfile report.Dockerfile
}

func (e *BuildError) Error() string { return e.err.Error() }
func (e *BuildError) Unwrap() error { return e.err }

// ErrFound is a check that found something and has printed it.
var ErrFound = errors.New("the check has found something")

// ExitStatus returns the exit status that err stands for.
func ExitStatus(err error) int {
	if unread(err) {
		return exitUnread
	}
	if own, ok := errors.AsType[*StatusError](err); ok {
		return own.Status
	}
	if _, ok := errors.AsType[*UsageError](err); ok {
		return ExitUsage
	}
	if _, ok := errors.AsType[*input.Error](err); ok {
		return ExitUsage
	}
	if _, ok := errors.AsType[*InternalError](err); ok {
		return ExitInternal
	}
	// A Dockerfile is not at fault for a step that fails, or for a server that does not give an image or a source.
	if _, ok := errors.AsType[*parser.Error](err); ok && !errors.As(err, new(*solver.VertexError)) && !errors.As(err, new(*registry.Error)) &&
		!errors.As(err, new(*contexts.SourceError)) {
		return ExitUsage
	}
	return ExitFailed
}

// Complain prints one line.
func (a *App) Complain(text string) {
	_, _ = fmt.Fprintf(a.Stderr, "kiln: %s\n", termtext.Line(text))
}

// PrintError prints what went wrong in one line, then the lines of the Dockerfile, then the last lines of the log of the
// step that failed, as far as there are any.
func (a *App) PrintError(err error) {
	if errors.Is(err, ErrFound) || unread(err) {
		return
	}
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range several.Unwrap() {
			a.PrintError(err)
		}
		return
	}
	var dockerfile report.Dockerfile
	if b, ok := errors.AsType[*BuildError](err); ok {
		dockerfile = b.dockerfile
	}
	var failures *progress.Failures
	if p, ok := errors.AsType[*ProgressError](err); ok {
		failures = p.Failures
	}
	line, more := report.Failure(err, dockerfile, failures)
	a.Complain(line)
	if a.told == nil || !errors.Is(err, a.told) {
		_, _ = a.Stderr.Write(more)
	}
}

// FailedBuild returns err with the Dockerfile of a build, which errors quote.
func FailedBuild(err error, r *build.Result) *BuildError {
	return &BuildError{err: err, dockerfile: report.Dockerfile{Name: r.DockerfileName, Text: r.Dockerfile}}
}
