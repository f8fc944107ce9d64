package cli

import (
	"context"
	"fmt"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/store"
	"github.com/spf13/cobra"
)

func checkCommand(a *app.App) *cobra.Command {
	var repair bool
	var mode string
	cmd := &cobra.Command{
		Use:   "check [flags]",
		Short: "Verify the files in the root directory",
		Long: `Verify every file in the root directory: blobs against their digests, the files of layers against their manifests, records and
lists. Problems are listed on standard output, and the exit status is then 1. Builds can run at the same time. To check a Dockerfile, use
kiln build --check.`,
		Example: "  kiln check\n  kiln check --repair",
		Args:    app.ExactArgs(),
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) error {
			problems, repaired := 0, 0
			found := func(f part.Finding) {
				problems++
				end := ""
				if f.Repaired {
					repaired++
					end = " [repaired]"
				}
				fmt.Fprintf(a.Stdout, "%s: %s; %s%s\n", termtext.Line(f.Path), termtext.Line(f.Problem), termtext.Line(f.Effect), end)
			}
			if repair {
				if err := repairLayout(a, found); err != nil {
					return &app.InternalError{Err: err}
				}
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				var c *store.Checked
				err := a.WithProgress(cmd.Context(), mode, func(ctx context.Context, s *events.Stream) (err error) {
					c, err = k.Root.Check(ctx, repair, s, found)
					return err
				})
				if err != nil {
					return err
				}
				sum := fmt.Sprintf("%s, %s, %s and %s checked, %s read", report.Count(c.Images, "image"), report.Count(c.Blobs, "blob"), report.Count(c.Layers, "layer"), report.Count(c.Records, "record"), report.Size(c.Bytes))
				switch {
				case problems == 0:
					sum += ": nothing is wrong"
				case repair:
					sum += fmt.Sprintf(": %s, %d of them repaired", report.Count(problems, "problem"), repaired)
				default:
					sum += ": " + report.Count(problems, "problem")
				}
				if _, err := fmt.Fprintln(a.Stdout, sum); err != nil {
					return err
				}
				if problems > repaired {
					return app.ErrFound
				}
				return nil
			})
		}),
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "remove damaged files, so that the next build makes them again")
	app.ProgressFlag(cmd.Flags(), &mode)
	return cmd
}

// repairLayout repairs the one file without which no root directory is opened.
func repairLayout(a *app.App, found func(part.Finding)) error {
	if _, err := a.Enter(); err != nil {
		return err
	}
	repaired, err := cas.RepairLayout(".")
	if repaired {
		found(part.Finding{Path: "oci-layout", Problem: "cannot be read", Effect: "kiln refuses the root directory", Repaired: true})
	}
	return err
}
