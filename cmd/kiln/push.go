package main

import (
	"context"

	"github.com/kilnbuild/kiln/events"
	"github.com/spf13/cobra"
)

func (a *app) pushCommand() *cobra.Command {
	var mode string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "push NAME[:TAG]",
		Short: "Send an image to its registry",
		Args:  exactArgs("a NAME"),
		RunE: a.asRoot(func(cmd *cobra.Command, args []string) error {
			return a.withRoot(cmd.Context(), func(k *kiln) error {
				return a.withProgress(cmd.Context(), quietMode(quiet, mode), func(ctx context.Context, s *events.Stream) error {
					return k.images.Push(ctx, args[0], s)
				})
			})
		}),
	}
	progressFlag(cmd.Flags(), &mode)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

// quietMode returns the progress mode that -q and --progress ask for together.
func quietMode(quiet bool, mode string) string {
	if quiet {
		return "quiet"
	}
	return mode
}
