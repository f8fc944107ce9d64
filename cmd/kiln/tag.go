package main

import (
	"github.com/spf13/cobra"
)

func (a *app) tagCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tag SOURCE[:TAG] TARGET[:TAG]",
		Short: "Give an image another name",
		Args:  exactArgs("a SOURCE", "a TARGET"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withRoot(cmd.Context(), func(k *kiln) error { return k.images.Tag(cmd.Context(), args[0], args[1]) })
		},
	}
}
