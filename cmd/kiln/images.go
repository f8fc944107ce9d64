package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/store/images"
	"github.com/spf13/cobra"
)

// imageRow is one line of the listing; the fields are those that templates for docker images use.
type imageRow struct {
	Repository   string
	Tag          string
	ID           string
	Digest       string
	CreatedSince string
	CreatedAt    string
	Size         string
	Platform     string
}

const none = "<none>"

func (a *app) imagesCommand() *cobra.Command {
	var quiet, noTrunc bool
	var format string
	cmd := &cobra.Command{
		Use:   "images [REPOSITORY[:TAG]]",
		Short: "List the images of the store",
		Args:  oneAtMost("REPOSITORY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			print, err := rowPrinter(format)
			if err != nil {
				return err
			}
			return a.withRoot(cmd.Context(), func(k *kiln) error {
				images, err := k.images.List(cmd.Context())
				if err != nil {
					return err
				}
				rows := imageRows(images, noTrunc, time.Now())
				if len(args) == 1 {
					rows = matching(rows, args[0])
				}
				var out bytes.Buffer
				switch {
				case quiet:
					seen := map[string]bool{}
					for _, r := range rows {
						if !seen[r.ID] {
							seen[r.ID] = true
							fmt.Fprintln(&out, r.ID)
						}
					}
				case print != nil:
					for _, r := range rows {
						if err := print(&out, r); err != nil {
							return err
						}
					}
				default:
					printTable(&out, rows)
				}
				_, err = a.stdout.Write(out.Bytes())
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids alone")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print ids in full")
	cmd.Flags().StringVar(&format, "format", "", "print each image by a Go template, or json, or table")
	return cmd
}

// imageRows returns a row for each name of each image.
func imageRows(images []images.Info, noTrunc bool, now time.Time) []imageRow {
	var rows []imageRow
	for _, i := range images {
		row := imageRow{
			ID:           i.ID,
			Digest:       orNone(i.Digest),
			CreatedSince: "N/A",
			CreatedAt:    "N/A",
			Size:         units.HumanSizeWithPrecision(float64(i.Size), 3),
			Platform:     strings.Join(i.Platforms, ","),
		}
		if !noTrunc {
			row.ID = strings.TrimPrefix(row.ID, "sha256:")
			row.ID = row.ID[:min(12, len(row.ID))]
		}
		if !i.Created.IsZero() {
			row.CreatedSince = units.HumanDuration(now.Sub(i.Created)) + " ago"
			row.CreatedAt = i.Created.Local().Format("2006-01-02 15:04:05 -0700 MST")
		}
		names := i.Names
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			row.Repository, row.Tag = splitName(name)
			rows = append(rows, row)
		}
	}
	return rows
}

// splitName returns the repository of an image name, as short as docker prints it, and the tag.
func splitName(name string) (repository, tag string) {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
	}
	if short, ok := strings.CutPrefix(name, "docker.io/"); ok {
		name = strings.TrimPrefix(short, "library/")
	}
	return orNone(name), orNone(tag)
}

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}

// matching returns the rows of a repository, or of a repository and tag.
func matching(rows []imageRow, name string) []imageRow {
	repository, tag := splitName(name)
	var out []imageRow
	for _, r := range rows {
		if r.Repository == repository && (tag == none || r.Tag == tag) {
			out = append(out, r)
		}
	}
	return out
}

func printTable(w io.Writer, rows []imageRow) {
	table := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	fmt.Fprintln(table, "REPOSITORY\tTAG\tIMAGE ID\tCREATED\tSIZE")
	for _, r := range rows {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", termtext.Line(r.Repository), termtext.Line(r.Tag), termtext.Line(r.ID), r.CreatedSince, r.Size)
	}
	_ = table.Flush() // into memory
}

// rowPrinter returns what prints a value by --format; nil for the default form.
func rowPrinter(format string) (func(w io.Writer, v any) error, error) {
	switch format {
	case "", "table":
		return nil, nil
	case "json":
		format = "{{json .}}"
	}
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
		"split": strings.Split,
	}).Parse(format)
	if err != nil {
		return nil, usageErrorf("--format: %w", err)
	}
	return func(w io.Writer, v any) error {
		if err := t.Execute(w, v); err != nil {
			return usageErrorf("--format: %w", err)
		}
		_, err := io.WriteString(w, "\n")
		return err
	}, nil
}
