package cli

import (
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/buildcmd"
	"github.com/kilnbuild/kiln/cmd/internal/cachecmd"
	"github.com/kilnbuild/kiln/cmd/internal/imagecmd"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// group returns a command that only has others, by the names that docker and buildx have for them.
func group(name, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name + " COMMAND", Short: short, Args: cobra.ArbitraryArgs, RunE: app.HelpOrUnknown}
	cmd.AddCommand(commands...)
	return cmd
}

// as returns a command under another name.
func as(name string, cmd *cobra.Command, aliases ...string) *cobra.Command {
	_, args, _ := strings.Cut(cmd.Use, " ")
	cmd.Use, cmd.Aliases = strings.TrimSpace(name+" "+args), aliases
	return cmd
}

// groups returns the commands that docker and buildx have in groups.
func groups(a *app.App) []*cobra.Command {
	return []*cobra.Command{
		lazily(a, "image", "The commands of docker image", func() []*cobra.Command {
			return []*cobra.Command{
				as("ls", imagecmd.Images(a), "list"), imagecmd.Inspect(a), as("rm", imagecmd.Rmi(a), "remove"), imagecmd.History(a), imagecmd.ImagePrune(a),
				buildcmd.Build(a), imagecmd.Pull(a), imagecmd.Push(a), imagecmd.Tag(a), imagecmd.Save(a), imagecmd.Load(a),
			}
		}),
		lazily(a, "manifest", "The commands of docker manifest", func() []*cobra.Command { return imagecmd.Manifest(a) }),
		lazily(a, "buildx", "The commands of docker buildx", func() []*cobra.Command {
			tools := group("imagetools", imagetoolsShort, imagecmd.Imagetools(a)...)
			bake := as("bake", buildcmd.Bake(a), "f")
			return []*cobra.Command{buildcmd.Build(a), as("b", buildcmd.Build(a)), bake, duCommand(a), pruneCommand(a), tools, versionCommand(a)}
		}),
		lazily(a, "builder", "The commands of docker builder", func() []*cobra.Command {
			return []*cobra.Command{buildcmd.Build(a), pruneCommand(a)}
		}),
		lazily(a, "system", "The commands of docker system", func() []*cobra.Command {
			return []*cobra.Command{as("df", duCommand(a)), pruneCommand(a)}
		}),
	}
}

const imagetoolsShort = "Inspect images in registries, and make multi-platform images"

// imagetoolsCommand returns the command of that name.
func imagetoolsCommand(a *app.App) *cobra.Command {
	return lazily(a, "imagetools", imagetoolsShort, func() []*cobra.Command { return imagecmd.Imagetools(a) })
}

func attestCommand(a *app.App) *cobra.Command {
	return lazily(a, "attest", "Show the attestations of images: provenance and SBOMs", func() []*cobra.Command { return imagecmd.Attest(a) })
}

func cacheCommand(a *app.App) *cobra.Command {
	return lazily(a, "cache", "Look at caches in registries and directories, and prune them", func() []*cobra.Command { return cachecmd.Commands(a) })
}

// otherNames is the ID of the group of commands that are other names of others.
const otherNames = "names"

// Groups are the commands whose commands are made lazily.
var Groups = []string{"attest", "cache", "image", "imagetools", "manifest", "buildx", "builder", "system"}

// lazily returns a command that only has others, which are made if the command line names it: making those of all groups takes as long as
// making all other commands.
func lazily(a *app.App, name, short string, commands func() []*cobra.Command) *cobra.Command {
	if slices.Contains(a.Args, name) {
		return group(name, short, commands()...)
	}
	return group(name, short)
}

// commandOrFlagError turns an error of the flag parser into a usage error: what is wrong with flags of a command that does not exist is the
// command.
func commandOrFlagError(a *app.App, cmd *cobra.Command, err error) error {
	if cmd.HasSubCommands() {
		_, rest, _ := cmd.Root().Find(a.Args)
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		flags.AddFlagSet(cmd.PersistentFlags())
		flags.AddFlagSet(cmd.InheritedFlags())
		flags.ParseErrorsAllowlist.UnknownFlags = true
		if flags.Parse(rest) == nil && flags.NArg() > 0 {
			return app.HelpOrUnknown(cmd, flags.Args())
		}
	}
	return app.FlagError(cmd, err)
}
