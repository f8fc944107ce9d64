package app

import (
	"errors"
	"strings"

	"github.com/kilnbuild/kiln/cmd/internal/dialect"
	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/suggest"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// HelpOrUnknown is what a command that only has others does: it prints its help, or says that it has no such command, and what does its
// work or was probably meant.
func HelpOrUnknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	full := pathOf(cmd) + args[0]
	if say := dialect.Command(full); say != "" {
		return UsageErrorf("unknown command %q: %s", full, say)
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(append(names, c.Name()), c.Aliases...)
		}
	}
	if near := suggest.Nearest(args[0], names...); near != "" {
		return UsageErrorf("unknown command %q; did you mean %s?", full, near)
	}
	return UsageErrorf("unknown command %q; %s --help lists the commands", full, cmd.CommandPath())
}

// pathOf returns the words that lead from kiln to a command, with a space at the end: "image ls "; "" for kiln.
func pathOf(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath()+" ", cmd.Root().Name()+" ")
}

// FlagError turns an error of the flag parser into a usage error that says what was probably meant. That of an unsupported flag is the
// message itself.
func FlagError(cmd *cobra.Command, err error) error {
	if u, ok := errors.AsType[*input.Error](err); ok {
		return u
	}
	switch e := err.(type) {
	case *pflag.NotExistError:
		return unknownFlag(cmd, e)
	case *pflag.ValueRequiredError:
		value, _ := help.Usage(e.GetFlag().Usage)
		return UsageErrorf("--%s needs a value: --%s %s", e.GetFlag().Name, e.GetFlag().Name, value)
	case *pflag.InvalidValueError:
		if e.GetFlag().Value.Type() == "bool" {
			return UsageErrorf("--%s %q: use true or false%s", e.GetFlag().Name, e.GetValue(), suggest.Hint(e.GetValue(), "true", "false"))
		}
		return UsageErrorf("--%s %q: %w", e.GetFlag().Name, e.GetValue(), e.Unwrap())
	}
	return UsageErrorf("%w; see %s --help", err, cmd.CommandPath())
}

// unknownFlag says what is meant by a flag that does not exist: what other tools have it for, or the flag with almost that name.
func unknownFlag(cmd *cobra.Command, e *pflag.NotExistError) error {
	flag, name := "--"+e.GetSpecifiedName(), e.GetSpecifiedName()
	if letters := e.GetSpecifiedShortnames(); letters != "" {
		flag = "-" + name
		if name = letters; len(letters) > 1 { // a long flag with a single dash, perhaps
			flag += " in -" + letters
		}
	}
	if say := dialect.Flag(strings.TrimSpace(pathOf(cmd)), flag); say != "" {
		return UsageErrorf("unknown flag %s: %s", flag, say)
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	if near := suggest.Nearest(name, names...); near != "" {
		return UsageErrorf("unknown flag %s; did you mean --%s?", flag, near)
	}
	return UsageErrorf("unknown flag %s; see %s --help", flag, cmd.CommandPath())
}
