package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/frontend/quote"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
	"github.com/kilnbuild/kiln/progress"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/solver"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
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
	dockerfile []byte
	name       string // of the Dockerfile, as errors call it
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
	location := locate(err)
	quoted := quote.New(nil)
	if b, ok := errors.AsType[*buildError](err); ok && location.StartLine > 0 && location.File == b.name {
		quoted = quote.New(b.dockerfile)
	}
	message := quoted.Message(err.Error(), location.StartLine, location.EndLine) + ofRoot(err)
	step, isStep := errors.AsType[*solver.VertexError](err)
	if isStep {
		message = stepText(step, location) + ": " + message
	}
	a.complain(message)
	if location.StartLine > 0 {
		_, _ = a.stderr.Write(excerpt(location, quoted))
	}
	if shown, ok := errors.AsType[*progressError](err); ok && isStep {
		_, _ = a.stderr.Write(quoteLog(shown.failures, step))
	}
}

// ofRoot says where the root directory is if that is what is wrong: errors name what is in it without its path.
func ofRoot(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); !ok || filepath.IsAbs(p.Path) {
		return ""
	}
	for _, of := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO, unix.EACCES, unix.EPERM} {
		if errors.Is(err, of) {
			return fmt.Sprintf(" (the root directory is %s)", rootdir.Shown("."))
		}
	}
	return ""
}

// stepText says which step failed. Where the error says what the step does, as that of a RUN names its command, the place is enough.
func stepText(step *solver.VertexError, l llb.Location) string {
	_, ok := step.Vertex.Op().(llb.Exec)
	if ok = ok || strings.HasPrefix(step.Error(), step.Vertex.Meta().Text); ok && l.StartLine > 0 {
		return fmt.Sprintf("%s:%d", l.File, l.StartLine)
	}
	return shorten(step.Vertex.Meta().Name())
}

// locate returns the place in a Dockerfile that an error is about; the zero value for none.
func locate(err error) llb.Location {
	if e, ok := errors.AsType[*solver.VertexError](err); ok && e.Vertex.Meta().Location.StartLine > 0 {
		return e.Vertex.Meta().Location
	}
	if e, ok := errors.AsType[*parser.Error](err); ok && e.Line > 0 {
		return llb.Location{File: e.File, StartLine: e.Line, EndLine: e.EndLine}
	}
	return llb.Location{}
}

// shorten cuts a step's name, which may be a script, to what fits into a message.
func shorten(name string) string {
	const most = 100
	if r := []rune(name); len(r) > most {
		return string(r[:most]) + "…"
	}
	return name
}

const (
	// excerptMargin is how many lines around those meant are shown, excerptMost how many of those meant.
	excerptMargin = 2
	excerptMost   = 20
)

// excerpt returns the lines of a Dockerfile around a location, those meant marked; only the location where there are none.
func excerpt(l llb.Location, of *quote.Source) []byte {
	const rule = "--------------------\n"
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s:%d\n", termtext.Line(l.File), l.StartLine)
	if l.StartLine > of.Lines() {
		return b.Bytes()
	}
	b.WriteString(rule)
	end := min(max(l.EndLine, l.StartLine), of.Lines())
	last := min(end, l.StartLine+excerptMost-1)
	for n := max(1, l.StartLine-excerptMargin); n <= min(last+excerptMargin, of.Lines()); n++ {
		if n > last && last < end {
			b.WriteString("     | >>> …\n")
			break
		}
		mark := "   "
		if n >= l.StartLine && n <= end {
			mark = ">>>"
		}
		line := fmt.Sprintf("%4d | %s %s", n, mark, termtext.Line(of.Line(n-1)))
		b.WriteString(strings.TrimRight(line, " \t") + "\n")
	}
	b.WriteString(rule)
	return b.Bytes()
}

// quoteLog returns the end of the log of a step, or nothing, and says where the rest is.
func quoteLog(failures *progress.Failures, step *solver.VertexError) []byte {
	const rule = "------\n"
	f, ok := failures.Of(step.Vertex.Digest())
	if !ok || len(f.Log) == 0 {
		return nil
	}
	text := rule + " > " + shorten(f.Name) + ":\n" + strings.Join(f.Log, "\n") + "\n" + rule
	if f.More && step.LogFile != "" {
		text += "all of its output: " + rootdir.Shown(step.LogFile) + "\n"
	}
	return []byte(text)
}
