package imagecmd

import (
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/spf13/cobra"
)

// Tag returns the command of that name.
func Tag(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:     "tag SOURCE[:TAG] TARGET[:TAG]",
		Short:   "Give an image another name",
		Example: "  kiln tag app registry.example/app:v1",
		Args:    app.ExactArgs("a SOURCE", "a TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error { return k.Images.Tag(cmd.Context(), args[0], args[1]) })
		},
	}
}
