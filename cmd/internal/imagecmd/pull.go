package imagecmd

import (
	"context"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/events"
	"github.com/spf13/cobra"
)

// Pull returns the command of that name.
func Pull(a *app.App) *cobra.Command {
	var mode, platform string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull [flags] NAME[:TAG|@DIGEST]",
		Short: "Fetch an image from a registry",
		Example: `  kiln pull debian:bookworm
  kiln pull --platform linux/arm64 registry.example/app:v1`,
		Args: app.ExactArgs("a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var given []string
			if platform != "" {
				given = []string{platform}
			}
			platforms, err := values.Platforms(given)
			if err != nil {
				return err
			}
			if len(platforms) > 1 {
				return app.UsageErrorf("pull takes one --platform")
			}
			one := ""
			if len(platforms) == 1 {
				one = platforms[0].String()
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				return a.WithProgress(cmd.Context(), app.QuietMode(quiet, mode), func(ctx context.Context, s *events.Stream) error {
					return k.Images.Pull(ctx, args[0], one, s)
				})
			})
		},
	}
	app.ProgressFlag(cmd.Flags(), &mode)
	a.RegistryFlags(cmd.Flags())
	cmd.Flags().StringVar(&platform, "platform", "", "`OS/ARCH` platform to fetch (default $DOCKER_DEFAULT_PLATFORM, else that of this host)")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}
