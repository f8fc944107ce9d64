package main

import (
	"context"

	"github.com/kilnbuild/kiln/cmd/kiln/internal/values"
	"github.com/kilnbuild/kiln/events"
	"github.com/spf13/cobra"
)

func (a *app) pullCommand() *cobra.Command {
	var mode, platform string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull NAME[:TAG|@DIGEST]",
		Short: "Fetch an image from its registry",
		Args:  exactArgs("a NAME"),
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
				return usageErrorf("pull takes one --platform")
			}
			one := ""
			if len(platforms) == 1 {
				one = platforms[0].String()
			}
			return a.withRoot(cmd.Context(), func(k *kiln) error {
				return a.withProgress(cmd.Context(), quietMode(quiet, mode), func(ctx context.Context, s *events.Stream) error {
					return k.images.Pull(ctx, args[0], one, s)
				})
			})
		},
	}
	progressFlag(cmd.Flags(), &mode)
	cmd.Flags().StringVar(&platform, "platform", "", "the platform of an image for several, as os/arch[/variant] (default $DOCKER_DEFAULT_PLATFORM)")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}
