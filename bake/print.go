package bake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/kilnbuild/kiln/internal/suggest"
)

// Print writes a plan as JSON that is a bake definition as well.
func (p *Plan) Print(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(p)
}

// MarshalJSON writes what the target says, in the order of attributes. Text that is evaluated when the definition is read again is escaped.
func (t *Target) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	for _, a := range attributes() {
		v := a.printed(a.field(t))
		if v == nil || a.name == "inherits" {
			continue
		}
		if out.Len() > 1 {
			out.WriteByte(',')
		}
		fmt.Fprintf(&out, "%q:", a.name)
		e := json.NewEncoder(&out)
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			return nil, err
		}
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// printed returns what is printed of an attribute; nil for nothing.
func (a *attribute) printed(field any) any {
	switch f := field.(type) {
	case *string:
		if *f != "" {
			return *f
		}
	case **string:
		if *f != nil && a.name == "dockerfile-inline" {
			return escaped(**f)
		} else if *f != nil {
			return **f
		}
	case **bool:
		if *f != nil {
			return **f
		}
	case *map[string]*string:
		m := map[string]string{}
		for key, value := range *f {
			if value == nil {
				continue
			}
			if m[key] = *value; a.name == "args" || a.name == "labels" {
				m[key] = escaped(*value)
			}
		}
		if len(m) > 0 {
			return m
		}
	case *[]string:
		if len(*f) > 0 && a.name == "annotations" {
			var list []string
			for _, s := range *f {
				list = append(list, escaped(s))
			}
			return list
		} else if len(*f) > 0 {
			return *f
		}
	case *[]Entry:
		if len(*f) > 0 {
			return a.printedEntries(*f)
		}
	}
	return nil
}

func (a *attribute) printedEntries(entries []Entry) any {
	var all []map[string]any
	for _, e := range entries {
		m := map[string]any{}
		for key, value := range e {
			switch {
			case a.name == "ssh" && key == "paths":
				m[key] = e.Paths()
			case a.name == "attest" && key == "disabled":
				m[key] = value == "true"
			default:
				m[key] = value
			}
		}
		all = append(all, m)
	}
	return all
}

// escaped returns text in which no templates begin.
func escaped(s string) string {
	return strings.NewReplacer("${", "$${", "%{", "%%{").Replace(s)
}

// listedTarget is what is listed of a target or group.
type listedTarget struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	Group       bool   `json:"group,omitempty"`
}

// ListTargets writes the targets and groups, except for those whose names begin with "_", as a table or as JSON.
func (d *Definition) ListTargets(w io.Writer, asJSON bool) error {
	all := []listedTarget{}
	for _, name := range d.names() {
		if strings.HasPrefix(name, "_") {
			continue
		}
		if g := d.groups[name]; g != nil {
			text := strings.Join(g.Targets, ", ")
			if g.Description != "" {
				text = g.Description + " (" + text + ")"
			}
			all = append(all, listedTarget{name, text, true})
			continue
		}
		all = append(all, listedTarget{Name: name, Description: d.targets[name].Description})
	}
	if asJSON {
		return writeJSON(w, all)
	}
	rows := [][]string{{"TARGET", "DESCRIPTION"}}
	for _, t := range all {
		rows = append(rows, []string{t.Name, t.Description})
	}
	return writeTable(w, rows)
}

// ListVariables writes the variables as a table or as JSON.
func (d *Definition) ListVariables(w io.Writer, asJSON bool) error {
	all := slices.SortedFunc(slices.Values(d.Variables), func(a, b Variable) int { return strings.Compare(a.Name, b.Name) })
	if asJSON {
		return writeJSON(w, slices.Concat([]Variable{}, all))
	}
	rows := [][]string{{"VARIABLE", "TYPE", "VALUE", "DESCRIPTION"}}
	for _, v := range all {
		value := "<null>"
		if v.Value != nil {
			value = *v.Value
		}
		rows = append(rows, []string{v.Name, v.Type, value, v.Description})
	}
	return writeTable(w, rows)
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// writeTable writes rows in columns. Fields are on one line each.
func writeTable(w io.Writer, rows [][]string) error {
	var table bytes.Buffer
	t := tabwriter.NewWriter(&table, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.NewReplacer("\n", " ", "\r", " ").Replace(strings.Join(row, "\t")))
	}
	_ = t.Flush() // to a buffer
	for line := range strings.Lines(table.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// similar returns a question for a name that may have been meant, or "".
func similar(name string, known []string) string {
	if other, ok := suggest.New().Search(name, func() []string { return known }, true); ok {
		return ": did you mean " + other + "?"
	}
	return ""
}
