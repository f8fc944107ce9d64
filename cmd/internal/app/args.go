package app

import (
	"strings"

	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/spf13/cobra"
)

// ExactArgs asks for the arguments that are named.
func ExactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(names) == 0 && len(args) > 0 {
			return UsageErrorf("%s takes no argument, and got %s", cmd.CommandPath(), report.Count(len(args), "argument"))
		}
		if len(args) != len(names) {
			return UsageErrorf("%s takes %s, and got %s", cmd.CommandPath(), strings.Join(names, " and "), report.Count(len(args), "argument"))
		}
		return nil
	}
}

// OneAtMost allows one argument or none.
func OneAtMost(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return UsageErrorf("%s takes one %s at most, and got %s", cmd.CommandPath(), name, report.Count(len(args), "argument"))
		}
		return nil
	}
}

// MinArgs allows one argument or more.
func MinArgs(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return UsageErrorf("%s takes at least one %s", cmd.CommandPath(), name)
		}
		return nil
	}
}
