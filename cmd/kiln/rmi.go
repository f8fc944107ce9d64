package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) rmiCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove names of images",
		Args:  minArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withRoot(cmd.Context(), func(k *kiln) error {
				// One name that is not there does not keep the others.
				var errs []error
				for _, name := range args {
					if err := k.images.Remove(cmd.Context(), name); err != nil {
						errs = append(errs, err)
						continue
					}
					if _, err := fmt.Fprintf(a.stdout, "Untagged: %s\n", name); err != nil {
						return err
					}
				}
				return errors.Join(errs...)
			})
		},
	}
	// Nothing in kiln keeps a name from being removed, so that there is nothing to force.
	cmd.Flags().BoolP("force", "f", false, "accepted as docker does")
	cmd.Flags().Bool("no-prune", false, "accepted as docker does: what the image is made of stays until kiln prune")
	return cmd
}
