package imagecmd

import (
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/cmd/internal/table"
	"github.com/spf13/cobra"
)

// historyColumns are the fields that docker history has.
var historyColumns = []table.Column{
	{Field: "ID", Heading: "IMAGE"}, {Field: "CreatedSince", Heading: "CREATED"}, {Field: "CreatedAt", Heading: "CREATED AT"},
	{Field: "CreatedBy", Heading: "CREATED BY"}, {Field: "Size", Heading: "SIZE IN STORE"}, {Field: "Comment", Heading: "COMMENT"},
}

// maxCreatedBy is how many characters of a step docker history prints.
const maxCreatedBy = 45

// History returns the command of that name.
func History(a *app.App) *cobra.Command {
	var quiet, noTrunc, human bool
	var format, platform string
	cmd := &cobra.Command{
		Use:   "history [flags] IMAGE",
		Short: "List the steps that made an image",
		Long: `List the steps that made an image, the last first. SIZE IN STORE is the size of the step's layer in the store: layers of a base image
are compressed as they came from the registry, layers that kiln built are uncompressed. kiln explain tells why steps ran.`,
		Example: `  kiln history --no-trunc app
  kiln history --format '{{.Size}}\t{{.CreatedBy}}' app`,
		Args: app.ExactArgs("an IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			printer, err := table.New(format, historyColumns, "ID", "CreatedSince", "CreatedBy", "Size", "Comment")
			if err != nil {
				return err
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				id, steps, err := k.Images.History(cmd.Context(), args[0], platform)
				if err != nil {
					return err
				}
				now := time.Now()
				var rows []table.Row
				for i, step := range steps {
					row := table.Row{"ID": "<missing>", "CreatedSince": since(step.Created, now), "CreatedAt": "N/A", "Comment": step.Comment,
						"CreatedBy": strings.ReplaceAll(step.CreatedBy, "\t", " "), "Size": report.Size(step.Layer.Size)}
					if i == 0 {
						row["ID"] = shortID(string(id), noTrunc)
					}
					if !step.Created.IsZero() {
						row["CreatedAt"] = step.Created.Format(time.RFC3339)
					}
					if !human {
						row["CreatedSince"], row["Size"] = row["CreatedAt"], strconv.FormatInt(step.Layer.Size, 10)
					}
					if r := []rune(row["CreatedBy"]); !noTrunc && len(r) > maxCreatedBy {
						row["CreatedBy"] = string(r[:maxCreatedBy-1]) + "…"
					}
					rows = append(rows, row)
				}
				if quiet {
					return printIDs(a, rows)
				}
				return printer.Print(a.Stdout, rows)
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&quiet, "quiet", "q", false, "print only IDs")
	flags.BoolVar(&noTrunc, "no-trunc", false, "do not shorten IDs and steps")
	flags.BoolVarP(&human, "human", "H", true, "print sizes and times in human-readable form")
	flags.StringVar(&format, "format", "", "`FORMAT` table, json, a Go template, or 'table TEMPLATE' with \\t between columns")
	flags.StringVar(&platform, "platform", "", "`OS/ARCH` platform to take of a multi-platform image (default that of this host)")
	return cmd
}
