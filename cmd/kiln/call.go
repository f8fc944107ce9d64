package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/frontend/quote"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

// call is --call NAME[,format=text|json].
type call struct {
	name string
	json bool
}

func parseCall(value string) (call, error) {
	name, options, _ := strings.Cut(value, ",")
	c := call{name: name}
	if !slices.Contains([]string{"", "build", "check", "outline", "targets"}, name) {
		return c, usageErrorf("--call %q: use build, check, outline or targets", name)
	}
	switch options {
	case "", "format=text":
	case "format=json":
		c.json = true
	default:
		return c, usageErrorf("--call %q: the only option is format=text or format=json", value)
	}
	return c, nil
}

// maxWarnings is how many warnings a build prints, and maxExcerpts how many of them have their lines of the Dockerfile; a check prints all.
const (
	maxWarnings = 100
	maxExcerpts = 10
)

// printWarnings prints a build's warnings, each in one line. Those that the last build of the Dockerfile did not have are followed by the
// lines that they are about; with --debug all are.
func (a *app) printWarnings(ctx context.Context, r *build.Result) {
	if len(r.Warnings) == 0 {
		return
	}
	hint := ""
	if !a.debug && slices.ContainsFunc(r.Warnings, func(w build.Warning) bool { return w.Known }) {
		hint = " (--check shows the lines)"
	}
	_, _ = fmt.Fprintf(a.stderr, "\n%s found%s:\n", count(len(r.Warnings), "warning"), hint)
	quoted := quote.New(r.Dockerfile)
	excerpts := 0
	for i, w := range r.Warnings {
		if i == maxWarnings || ctx.Err() != nil {
			_, _ = fmt.Fprintf(a.stderr, "and %d more: --check prints all of them\n", len(r.Warnings)-i)
			return
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, " - %s: %s", w.Rule, termtext.Line(quoted.Message(w.Message, w.Location.StartLine, w.Location.EndLine)))
		switch {
		case w.Location.StartLine == 0:
			b.WriteByte('\n')
		case !a.debug && (w.Known || excerpts == maxExcerpts):
			fmt.Fprintf(&b, " (line %d)\n", w.Location.StartLine)
		default:
			excerpts++
			b.WriteByte('\n')
			b.Write(excerpt(w.Location, quoted))
		}
		if _, err := a.stderr.Write(b.Bytes()); err != nil {
			return // who does not read them does not want them
		}
	}
}

// warnings prints warnings one by one, however many there are, until ctx ends.
func warnings(ctx context.Context, to io.Writer, r *build.Result, shown []build.Warning) error {
	quoted := quote.New(r.Dockerfile)
	for _, w := range shown {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		var b bytes.Buffer
		fmt.Fprintf(&b, "\nWARNING: %s\n%s\n", strings.TrimSuffix(w.Rule+" - "+w.URL, " - "), termtext.Line(quoted.Message(w.Message, w.Location.StartLine, w.Location.EndLine)))
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

// printCheck prints what a check found, and fails where that is more than advice. The check's own error, if it has one, stops
// it; as JSON it is a part of the result.
func (a *app) printCheck(ctx context.Context, r *build.Result, err error, asJSON bool) error {
	failed := err
	if err != nil {
		failed = &buildError{err: err, dockerfile: r.Dockerfile, name: r.DockerfileName}
	} else if slices.ContainsFunc(r.Warnings, func(w build.Warning) bool { return !w.Advice }) {
		failed = errFound
	}
	if !asJSON {
		found := ""
		switch {
		case len(r.Warnings) > 0 && err == nil:
			found = fmt.Sprintf("Check complete, %s found.\n", count(len(r.Warnings), "warning"))
		case err == nil:
			found = "Check complete, no warnings found.\n"
		}
		_, printErr := io.WriteString(a.stdout, found)
		if printErr == nil {
			printErr = warnings(ctx, a.stdout, r, r.Warnings)
		}
		return cmp.Or(failed, printErr)
	}
	out := lintResults{Warnings: []lintWarning{}, Sources: []lintSource{{r.DockerfileName, "Dockerfile", r.Dockerfile}}}
	for _, w := range r.Warnings {
		out.Warnings = append(out.Warnings, lintWarning{w.Rule, w.Description, w.URL, w.Message, location(w.Location)})
	}
	if err != nil {
		at := locate(err)
		out.Error = &lintError{termtext.Redact(message(err)), location(at)}
	}
	if err := printJSON(a.stdout, out); err != nil {
		return err
	}
	return failed
}

// message returns the text of an error without the place in the Dockerfile, which JSON has beside it.
func message(err error) string {
	e, ok := errors.AsType[*parser.Error](err)
	switch {
	case !ok:
		return err.Error()
	case e.Hint != "":
		return e.Msg + " (" + e.Hint + ")"
	}
	return e.Msg
}

func location(l llb.Location) *build.SourceLocation {
	return build.NewSourceLocation(l.StartLine, l.EndLine)
}

func printJSON(w io.Writer, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(termtext.JSON(data), '\n'))
	return err
}

// printDescription prints the result of --call outline and targets.
func (a *app) printDescription(r *build.Result, asJSON bool) error {
	if asJSON {
		if r.Outline != nil {
			return printJSON(a.stdout, r.Outline)
		}
		return printJSON(a.stdout, r.Targets)
	}
	var b bytes.Buffer
	table := func(rows ...[]string) {
		w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
		for _, row := range rows {
			for i := range row {
				row[i] = termtext.Line(row[i])
			}
			fmt.Fprintln(w, strings.TrimRight(strings.Join(row, "\t"), "\t"))
		}
		_ = w.Flush() // to a buffer
	}
	if r.Targets != nil {
		rows := [][]string{{"TARGET", "DESCRIPTION"}}
		for _, t := range r.Targets.Targets {
			name := t.Name
			if t.Default {
				name = strings.TrimSpace(name + " (default)")
			}
			rows = append(rows, []string{name, t.Description})
		}
		table(rows...)
		_, err := a.stdout.Write(b.Bytes())
		return err
	}
	o := r.Outline
	if o.Name != "" || o.Description != "" {
		name := o.Name
		if name == "" {
			name = "(default)"
		}
		rows := [][]string{{"TARGET:", name}}
		if o.Description != "" {
			rows = append(rows, []string{"DESCRIPTION:", o.Description})
		}
		table(rows...)
		b.WriteByte('\n')
	}
	if len(o.Args) > 0 {
		rows := [][]string{{"BUILD ARG", "VALUE", "DESCRIPTION"}}
		for _, arg := range o.Args {
			rows = append(rows, []string{arg.Name, arg.Shown(), arg.Description})
		}
		table(rows...)
		b.WriteByte('\n')
	}
	for _, list := range []struct {
		title  string
		mounts []build.OutlineMount
	}{{"SECRET", o.Secrets}, {"SSH", o.SSH}} {
		if len(list.mounts) == 0 {
			continue
		}
		rows := [][]string{{list.title, "REQUIRED"}}
		for _, m := range list.mounts {
			required := ""
			if m.Required {
				required = "true"
			}
			rows = append(rows, []string{m.Name, required})
		}
		table(rows...)
		b.WriteByte('\n')
	}
	_, err := a.stdout.Write(b.Bytes())
	return err
}
