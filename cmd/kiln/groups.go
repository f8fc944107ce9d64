package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// group returns a command that only has others, by the names that docker and buildx have for them.
func group(name, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name + " COMMAND", Short: short, Args: cobra.ArbitraryArgs, RunE: helpOrUnknown, SuggestionsMinimumDistance: 2}
	cmd.AddCommand(commands...)
	return cmd
}

// as returns a command under another name.
func as(name string, cmd *cobra.Command, aliases ...string) *cobra.Command {
	_, args, _ := strings.Cut(cmd.Use, " ")
	cmd.Use, cmd.Aliases = strings.TrimSpace(name+" "+args), aliases
	return cmd
}

// groups returns the commands that docker and buildx have in groups. Making them takes as long as making all others, so a group that the
// command line does not name is empty.
func (a *app) groups() []*cobra.Command {
	var all []*cobra.Command
	add := func(name, short string, commands func() []*cobra.Command) {
		g := group(name, short)
		if slices.Contains(a.args, name) || len(a.args) > 0 && strings.HasPrefix(a.args[0], cobra.ShellCompRequestCmd) {
			g.AddCommand(commands()...)
		}
		all = append(all, g)
	}
	add("image", "Manage images, as docker image does", func() []*cobra.Command {
		return []*cobra.Command{
			as("ls", a.imagesCommand(), "list"), a.inspectCommand(), as("rm", a.rmiCommand(), "remove"), a.historyCommand(), a.imagePruneCommand(),
			a.buildCommand(), a.pullCommand(), a.pushCommand(), a.tagCommand(), a.saveCommand(), a.loadCommand(),
		}
	})
	add("imagetools", "Work on images in registries, as docker buildx imagetools does", a.imagetoolsCommands)
	add("manifest", "Work on manifests in registries, as docker manifest does", a.manifestCommands)
	add("buildx", "Other names of commands, as docker buildx has them", func() []*cobra.Command {
		tools := group("imagetools", "Work on images in registries", a.imagetoolsCommands()...)
		return []*cobra.Command{a.buildCommand(), as("b", a.buildCommand()), a.duCommand(), a.pruneCommand(), tools, a.versionCommand()}
	})
	add("builder", "Other names of commands, as docker builder has them", func() []*cobra.Command {
		return []*cobra.Command{a.buildCommand(), a.pruneCommand()}
	})
	add("system", "Other names of commands, as docker system has them", func() []*cobra.Command {
		return []*cobra.Command{as("df", a.duCommand()), a.pruneCommand()}
	})
	return all
}

// instead returns what does the work of a command that kiln does not have, or "".
func instead(command string) string {
	switch command {
	case "info", "system info":
		return "kiln doctor reports what the host supports, and kiln version the version"
	case "buildx ls", "buildx use", "buildx create", "buildx rm", "buildx inspect", "buildx stop":
		return "kiln has no builders, and kiln build does the work itself"
	case "manifest create", "manifest push", "manifest annotate", "manifest rm":
		return "kiln imagetools create makes an index of images and pushes it"
	case "import":
		return "ADD archive.tar / after FROM scratch makes an image of an archive"
	case "commit":
		return "kiln has no containers, and a Dockerfile says what an image is made of"
	case "create", "ps", "exec", "start", "stop", "restart", "kill", "logs", "attach", "container", "network", "volume", "stats", "top", "wait", "port",
		"pause", "unpause", "rename", "update", "export":
		return "containers are run by an engine such as docker or podman"
	}
	return ""
}

// helpOrUnknown is what a command that only has others does: it prints its help, or says that it has no such command.
func helpOrUnknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	hint := "; " + cmd.CommandPath() + " --help lists the commands"
	full := strings.TrimPrefix(cmd.CommandPath()+" "+args[0], "kiln ")
	if other := instead(full); other != "" {
		hint = ": " + other
	} else if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		hint = "; did you mean " + strings.Join(s, " or ") + "?"
	}
	return usageErrorf("unknown command %q%s", full, hint)
}

// commandOrFlagError turns an error of the flag parser into a usage error: what is wrong with flags of a command that does not exist is the
// command.
func (a *app) commandOrFlagError(cmd *cobra.Command, err error) error {
	if cmd.HasSubCommands() {
		_, rest, _ := cmd.Root().Find(a.args)
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		flags.AddFlagSet(cmd.PersistentFlags())
		flags.AddFlagSet(cmd.InheritedFlags())
		flags.ParseErrorsAllowlist.UnknownFlags = true
		if flags.Parse(rest) == nil && flags.NArg() > 0 {
			return helpOrUnknown(cmd, flags.Args())
		}
	}
	return flagError(cmd, err)
}

func (a *app) imagePruneCommand() *cobra.Command {
	var force, all bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images without a name from the list",
		Long: `Remove images without a name from the list of images. kiln prune also removes their blobs, and the cache that no image with a name
needs.`,
		Example: "  kiln image prune -f && kiln prune -f",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all {
				return usageErrorf("--all would remove every image, because kiln has no containers that use them; kiln rmi removes images by name")
			}
			if !force {
				if err := a.confirm(cmd, "images without a name"); err != nil {
					return err
				}
			}
			return a.withRoot(cmd.Context(), func(k *kiln) error {
				gone, err := k.images.Forget(cmd.Context())
				for _, d := range gone {
					if _, err := fmt.Fprintf(a.stdout, "Deleted: %s\n", d); err != nil {
						return err
					}
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "not supported")
	_ = cmd.Flags().MarkHidden("all") // it was just added
	return cmd
}
