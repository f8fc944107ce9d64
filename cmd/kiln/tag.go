package main

import (
	"github.com/kilnbuild/kiln/build"
	"github.com/spf13/cobra"
)

func (a *app) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tag SOURCE[:TAG] TARGET[:TAG]",
		Short: "Give an image another name",
		Args:  exactArgs("a SOURCE", "a TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withBuilder(cmd.Context(), func(b *build.Builder) error { return b.Tag(cmd.Context(), args[0], args[1]) })
		},
	}
}
