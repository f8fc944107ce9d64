package cli

import (
	"time"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/spf13/cobra"
)

func explainCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:   "explain [BUILD]",
		Short: "Show which steps a build ran, and why",
		Long: `Show which steps the last build ran and why, and where their output is. BUILD is the ID of an earlier build, or the beginning or
end of its ID.`,
		Example: "  kiln explain\n  kiln explain 20260304T15",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return app.UsageErrorf("%s takes one BUILD at most", cmd.CommandPath())
			}
			return nil
		},
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) == 1 {
				id = args[0]
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				p, err := k.Root.Past(id)
				if err != nil {
					return err
				}
				_, err = a.Stdout.Write(report.Explanation(p, time.Now()))
				return err
			})
		}),
	}
}
