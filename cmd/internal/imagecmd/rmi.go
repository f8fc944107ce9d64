package imagecmd

import (
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/spf13/cobra"
)

// Rmi returns the command of that name.
func Rmi(a *app.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rmi [flags] IMAGE...",
		Short:   "Remove images by name",
		Long:    "Remove names of images. The layers of an image that has lost its last name stay until kiln prune.",
		Example: "  kiln rmi app:v1 app:v2",
		Args:    app.MinArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				// One name that is not there does not keep the others.
				var errs []error
				for _, name := range args {
					if err := k.Images.Remove(cmd.Context(), name); err != nil {
						errs = append(errs, err)
						continue
					}
					if _, err := fmt.Fprintf(a.Stdout, "Untagged: %s\n", name); err != nil {
						return err
					}
				}
				return errors.Join(errs...)
			})
		},
	}
	// Nothing in kiln keeps a name from being removed, so that there is nothing to force.
	cmd.Flags().BoolP("force", "f", false, "no effect, as nothing keeps a name from being removed")
	cmd.Flags().Bool("no-prune", false, "no effect, as layers stay until kiln prune")
	return cmd
}
