package imagecmd

import (
	"fmt"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/spf13/cobra"
)

// ImagePrune returns the command of that name.
func ImagePrune(a *app.App) *cobra.Command {
	var force, all bool
	cmd := &cobra.Command{
		Use:     "prune [flags]",
		Short:   "Remove images without a name",
		Long:    `Remove images without a name from the list of images. Their blobs stay until kiln prune, which also removes unused cache.`,
		Example: "  kiln image prune -f && kiln prune -f",
		Args:    app.ExactArgs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all {
				return app.UsageErrorf("--all would remove every image, because kiln has no containers that use them; kiln rmi removes images by name")
			}
			if !force {
				if err := a.Confirm(cmd, "images without a name"); err != nil {
					return err
				}
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				gone, err := k.Images.Forget(cmd.Context())
				for _, d := range gone {
					if _, err := fmt.Fprintf(a.Stdout, "Deleted: %s\n", d); err != nil {
						return err
					}
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask for confirmation")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "not supported")
	_ = cmd.Flags().MarkHidden("all") // it was just added
	return cmd
}
