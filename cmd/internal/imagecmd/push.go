package imagecmd

import (
	"context"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/spf13/cobra"
)

// Push returns the command of that name.
func Push(a *app.App) *cobra.Command {
	var mode string
	var quiet bool
	var sign []string
	cmd := &cobra.Command{
		Use:     "push [flags] NAME[:TAG]",
		Short:   "Send an image to a registry",
		Example: "  kiln tag app registry.example/app:v1\n  kiln push registry.example/app:v1\n  kiln push --sign cosign.key registry.example/app:v1",
		Args:    app.ExactArgs("a NAME"),
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) error {
			keys, err := signing.ReadPrivateKeys(sign)
			if err != nil {
				return &input.Error{Err: err}
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				return a.WithProgress(cmd.Context(), app.QuietMode(quiet, mode), func(ctx context.Context, s *events.Stream) error {
					return k.Images.Push(ctx, args[0], keys, s)
				})
			})
		}),
	}
	values.SignFlag(cmd.Flags(), &sign)
	app.ProgressFlag(cmd.Flags(), &mode)
	a.RegistryFlags(cmd.Flags())
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}
