package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/internal/termtext"
)

func printJSON(w io.Writer, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(termtext.JSON(data), '\n'))
	return err
}

// Description prints the result of --call outline or targets.
func Description(to io.Writer, r *build.Result, asJSON bool) error {
	if asJSON {
		if r.Outline != nil {
			return printJSON(to, r.Outline)
		}
		return printJSON(to, r.Targets)
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
		_, err := to.Write(b.Bytes())
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
	_, err := to.Write(b.Bytes())
	return err
}
