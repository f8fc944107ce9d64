// Package table prints rows in the ways that --format of docker's lists chooses: as a table, as JSON, or by a Go template.
package table

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"text/tabwriter"
	"text/template"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/termtext"
)

// Column is a field of each row, as templates name it, and its heading in a table.
type Column struct{ Field, Heading string }

// Row has a value for the field of each column.
type Row map[string]string

// Printer prints rows in one format.
type Printer struct {
	columns  []Column
	template *template.Template
	table    bool
}

// New returns a Printer for the value of --format: "" or "table" is a table of the fields in usual, "table TEMPLATE" one of what the template
// has between its tabs, "json" one JSON object for each row, and everything else a Go template. The error is an *input.Error: a template
// that cannot be read, or that has a field that no column has.
func New(format string, columns []Column, usual ...string) (*Printer, error) {
	p := &Printer{columns: columns}
	text, isTable := strings.CutPrefix(format, "table")
	switch {
	case format == "" || format == "table":
		p.table, format = true, "{{."+strings.Join(usual, "}}\t{{.")+"}}"
	case isTable && strings.HasPrefix(text, " "):
		p.table, format = true, unescape(strings.TrimSpace(text))
	case format == "json":
		format = "{{json .}}"
	default:
		format = unescape(format)
	}
	var err error
	if p.template, err = Template(format); err != nil {
		return nil, err
	}
	p.template.Option("missingkey=error")
	if err := p.template.Execute(io.Discard, p.headings()); err != nil {
		return nil, p.explain(err)
	}
	return p, nil
}

// unescape replaces \t and \n, which a shell leaves as they are, as docker does.
func unescape(s string) string { return strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(s) }

func (p *Printer) headings() Row {
	row := Row{}
	for _, c := range p.columns {
		row[c.Field] = c.Heading
	}
	return row
}

// Print prints rows, and in a table the headings first.
func (p *Printer) Print(w io.Writer, rows []Row) error {
	var out bytes.Buffer
	line := func(row Row) error {
		if err := p.template.Execute(&out, row); err != nil {
			return p.explain(err)
		}
		return out.WriteByte('\n')
	}
	if p.table {
		if err := line(p.headings()); err != nil {
			return err
		}
	}
	for _, row := range rows {
		if p.table {
			row = row.shown()
		}
		if err := line(row); err != nil {
			return err
		}
	}
	if !p.table {
		_, err := w.Write(out.Bytes())
		return err
	}
	var aligned bytes.Buffer
	t := tabwriter.NewWriter(&aligned, 10, 1, 3, ' ', 0)
	_, _ = t.Write(out.Bytes()) // into memory
	_ = t.Flush()
	for text := range strings.Lines(aligned.String()) {
		if _, err := io.WriteString(w, strings.TrimRight(text, " \n")+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// shown returns the row with values that fit into one line of a table.
func (r Row) shown() Row {
	out := Row{}
	for field, value := range r {
		out[field] = termtext.Line(value)
	}
	return out
}

var missingField = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`map has no entry for key "([^"]*)"`) })

// explain returns the error of a template, with the fields if it asked for one that does not exist.
func (p *Printer) explain(err error) error {
	m := missingField().FindStringSubmatch(err.Error())
	if m == nil {
		return failed(err)
	}
	var fields []string
	for _, c := range p.columns {
		fields = append(fields, "."+c.Field)
	}
	return &input.Error{Err: fmt.Errorf("--format: there is no field .%s; there are %s", m[1], strings.Join(fields, ", "))}
}

func failed(err error) error { return &input.Error{Err: fmt.Errorf("--format: %w", err)} }

// Template returns a template with docker's functions. The error is an *input.Error.
func Template(text string) (*template.Template, error) {
	t, err := template.New("").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			var b strings.Builder
			enc := json.NewEncoder(termtext.JSONWriter(&b))
			enc.SetEscapeHTML(false)
			err := enc.Encode(v)
			return strings.TrimSuffix(b.String(), "\n"), err
		},
		"join":  strings.Join,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"title": func(s string) string { return strings.ToUpper(s[:min(1, len(s))]) + s[min(1, len(s)):] },
		"split": strings.Split,
		"println": func(v ...any) string {
			return fmt.Sprintln(v...)
		},
		"truncate": func(s string, n int) string {
			if r := []rune(s); n >= 0 && len(r) > n {
				return string(r[:n])
			}
			return s
		},
	}).Parse(text)
	if err != nil {
		return nil, failed(err)
	}
	return t, nil
}

// Values prints each of some values by the template of --format, which may name fields as Go does or as the JSON of the value does. The
// error is an *input.Error for a field that does not exist.
func Values(w io.Writer, format string, values []any) error {
	if format == "json" {
		format = "{{json .}}"
	}
	t, err := Template(unescape(format))
	if err != nil {
		return err
	}
	for _, v := range values {
		var out bytes.Buffer
		typed := t.Execute(&out, v)
		if exec, ok := errors.AsType[template.ExecError](typed); ok {
			out.Reset()
			if t.Option("missingkey=error").Execute(&out, members(v)) != nil {
				return failed(exec)
			}
		} else if typed != nil {
			return typed
		}
		out.WriteByte('\n')
		if _, err := w.Write(out.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// members returns what the JSON of a value decodes to.
func members(v any) any {
	data, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var out any
	_ = dec.Decode(&out) // it was just encoded
	return out
}
