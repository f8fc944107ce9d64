package report

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/frontend/quote"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
	"github.com/kilnbuild/kiln/progress"
	"github.com/kilnbuild/kiln/solver"
	"golang.org/x/sys/unix"
)

// Dockerfile is the text of a Dockerfile, and its name as errors have it.
type Dockerfile struct {
	Name string
	Text []byte
}

// Failure returns what is printed about an error: a line, which is not yet safe for a terminal, and what follows it, the lines of the
// Dockerfile that err is about and the end of the log of the step that failed. The zero Dockerfile and nil failures are not quoted.
func Failure(err error, of Dockerfile, failures *progress.Failures) (line string, more []byte) {
	location := locate(err)
	quoted := quote.New(nil)
	if location.StartLine > 0 && location.File == of.Name {
		quoted = quote.New(of.Text)
	}
	line = quoted.Message(text(err), location.StartLine, location.EndLine) + ofRoot(err)
	step, isStep := errors.AsType[*solver.VertexError](err)
	if isStep {
		line = stepText(step, location) + ": " + line
	}
	if location.StartLine > 0 {
		more = excerpt(location, quoted)
	}
	if isStep && failures != nil {
		more = append(more, quoteLog(failures, step)...)
	}
	return line, more
}

// text returns the message of an error, in which paths of the host are as people call them.
func text(err error) string {
	s := err.Error()
	var walk func(err error)
	walk = func(err error) {
		switch e := err.(type) {
		case *fs.PathError:
			shown := *e
			shown.Path = rootdir.Shown(e.Path)
			s = strings.ReplaceAll(s, e.Error(), shown.Error())
			return
		case *os.LinkError:
			shown := *e
			shown.Old, shown.New = rootdir.Shown(e.Old), rootdir.Shown(e.New)
			s = strings.ReplaceAll(s, e.Error(), shown.Error())
			return
		case interface{ Unwrap() error }:
			if next := e.Unwrap(); next != nil {
				walk(next)
			}
		case interface{ Unwrap() []error }:
			for _, next := range e.Unwrap() {
				walk(next)
			}
		}
	}
	walk(err)
	return s
}

// ofRoot names the root directory if err is about its file system and does not do so itself, and says what to do if that is full.
func ofRoot(err error) string {
	full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
	path, isPath := errors.AsType[*fs.PathError](err)
	_, isFile := errors.AsType[*layer.FileError](err)
	switch {
	case full && isPath && filepath.IsAbs(path.Path):
		return "" // it is a file of the user's
	case full:
		return fmt.Sprintf(" (the root directory is %s: kiln du shows what takes its space, kiln prune removes what is not used)", rootdir.Shown("."))
	case !isFile:
		return ""
	}
	for _, of := range []error{unix.EROFS, unix.EIO, unix.EACCES, unix.EPERM} {
		if errors.Is(err, of) {
			return fmt.Sprintf(" (the root directory is %s)", rootdir.Shown("."))
		}
	}
	return ""
}

// stepText names the step that failed: by its place in the Dockerfile if the error itself says what the step does, as that of a RUN does.
func stepText(step *solver.VertexError, l llb.Location) string {
	_, ok := step.Vertex.Op().(llb.Exec)
	if ok = ok || strings.HasPrefix(step.Error(), step.Vertex.Meta().Text); ok && l.StartLine > 0 {
		return fmt.Sprintf("%s:%d", l.File, l.StartLine)
	}
	return shorten(step.Vertex.Meta().Name())
}

// locate returns the place in a Dockerfile that an error is about; the zero value if there is none.
func locate(err error) llb.Location {
	if e, ok := errors.AsType[*solver.VertexError](err); ok && e.Vertex.Meta().Location.StartLine > 0 {
		return e.Vertex.Meta().Location
	}
	if e, ok := errors.AsType[*parser.Error](err); ok && e.Line > 0 {
		return llb.Location{File: e.File, StartLine: e.Line, EndLine: e.EndLine}
	}
	return llb.Location{}
}

const (
	// excerptMargin is how many lines are shown before and after the marked ones, excerptMost how many lines are marked.
	excerptMargin = 2
	excerptMost   = 20
)

// excerpt returns the lines of a Dockerfile around a location, with those at the location marked. Without the text it returns the place
// alone.
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

// quoteLog returns the end of the log of a step, and where the rest is; nil if the step printed nothing.
func quoteLog(failures *progress.Failures, step *solver.VertexError) []byte {
	const rule = "------\n"
	f, ok := failures.Of(step.Vertex.Digest())
	if !ok || len(f.Log) == 0 {
		return nil
	}
	quote := rule + " > " + shorten(f.Name) + ":\n" + strings.Join(f.Log, "\n") + "\n" + rule
	if f.More && step.LogFile != "" {
		quote += "all of its output: " + rootdir.Shown(step.LogFile) + "\n"
	}
	return []byte(quote)
}
