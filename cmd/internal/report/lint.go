package report

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/frontend/quote"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// maxWarnings is how many warnings a build prints, and maxExcerpts how many of them with their lines of the Dockerfile; a check prints all.
const (
	maxWarnings = 100
	maxExcerpts = 10
)

// Warnings prints a build's warnings, each in one line. Those that the last build of the Dockerfile did not have are followed by the lines
// that they are about, and so are all if debug is set.
func Warnings(ctx context.Context, to io.Writer, r *build.Result, debug bool) {
	if len(r.Warnings) == 0 {
		return
	}
	hint := ""
	if !debug && slices.ContainsFunc(r.Warnings, func(w build.Warning) bool { return w.Known }) {
		hint = " (--check shows the lines)"
	}
	_, _ = fmt.Fprintf(to, "\n%s found%s:\n", Count(len(r.Warnings), "warning"), hint)
	quoted := quote.New(r.Dockerfile)
	excerpts := 0
	for i, w := range r.Warnings {
		if i == maxWarnings || ctx.Err() != nil {
			_, _ = fmt.Fprintf(to, "and %d more: --check prints all of them\n", len(r.Warnings)-i)
			return
		}
		var b bytes.Buffer
		rule := ""
		if w.Rule != "" {
			rule = w.Rule + ": "
		}
		fmt.Fprintf(&b, " - %s%s", rule, termtext.Line(quoted.Message(w.Message, w.Location.StartLine, w.Location.EndLine)))
		switch {
		case w.Location.StartLine == 0:
			b.WriteByte('\n')
		case !debug && (w.Known || excerpts == maxExcerpts):
			fmt.Fprintf(&b, " (line %d)\n", w.Location.StartLine)
		default:
			excerpts++
			b.WriteByte('\n')
			b.Write(excerpt(w.Location, quoted))
		}
		if _, err := to.Write(b.Bytes()); err != nil {
			return // nobody reads them
		}
	}
}

// printWarnings prints all warnings with their lines until ctx ends.
func printWarnings(ctx context.Context, to io.Writer, r *build.Result) error {
	quoted := quote.New(r.Dockerfile)
	for _, w := range r.Warnings {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		var b bytes.Buffer
		text := termtext.Line(quoted.Message(w.Message, w.Location.StartLine, w.Location.EndLine))
		fmt.Fprintf(&b, "\nWARNING: %s\n%s\n", strings.TrimSuffix(w.Rule+" - "+w.URL, " - "), text)
		if w.Location.StartLine > 0 {
			b.Write(excerpt(w.Location, quoted))
		}
		if _, err := to.Write(b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// lintResults is the result of BuildKit's subrequest frontend.lint.
type lintResults struct {
	Warnings []lintWarning `json:"warnings"`
	Sources  []lintSource  `json:"sources"`
	Error    *lintError    `json:"buildError,omitempty"`
}

type lintWarning struct {
	RuleName    string                `json:"ruleName"`
	Description string                `json:"description,omitempty"`
	URL         string                `json:"url,omitempty"`
	Detail      string                `json:"detail,omitempty"`
	Location    *build.SourceLocation `json:"location,omitempty"`
}

type lintSource struct {
	Filename string `json:"filename"`
	Language string `json:"language"`
	Data     []byte `json:"data"`
}

type lintError struct {
	Message  string                `json:"message"`
	Location *build.SourceLocation `json:"location,omitempty"`
}

// Check prints the warnings of a check. If err is not nil, it stopped the check: it is a field of the JSON, and is not printed as text.
func Check(ctx context.Context, to io.Writer, r *build.Result, err error, asJSON bool) error {
	if asJSON {
		return checkJSON(to, r, err)
	}
	if err == nil {
		found := "no warnings"
		if len(r.Warnings) > 0 {
			found = Count(len(r.Warnings), "warning")
		}
		if _, err := fmt.Fprintf(to, "Check complete, %s found.\n", found); err != nil {
			return err
		}
	}
	return printWarnings(ctx, to, r)
}

func checkJSON(to io.Writer, r *build.Result, err error) error {
	out := lintResults{Warnings: []lintWarning{}, Sources: []lintSource{{r.DockerfileName, "Dockerfile", r.Dockerfile}}}
	for _, w := range r.Warnings {
		out.Warnings = append(out.Warnings, lintWarning{w.Rule, w.Description, w.URL, w.Message, location(w.Location)})
	}
	if err != nil {
		at := locate(err)
		out.Error = &lintError{termtext.Redact(message(err)), location(at)}
	}
	return printJSON(to, out)
}

// message returns the text of an error without the place in the Dockerfile, which has a field of its own in JSON.
func message(err error) string {
	e, ok := errors.AsType[*parser.Error](err)
	switch {
	case !ok:
		return text(err)
	case e.Hint != "":
		return e.Msg + " (" + e.Hint + ")"
	}
	return e.Msg
}

func location(l llb.Location) *build.SourceLocation {
	return build.NewSourceLocation(l.StartLine, l.EndLine)
}
