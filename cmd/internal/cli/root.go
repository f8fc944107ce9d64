package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/buildcmd"
	"github.com/kilnbuild/kiln/cmd/internal/complete"
	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/cmd/internal/imagecmd"
	"github.com/kilnbuild/kiln/cmd/internal/runcmd"
	"github.com/kilnbuild/kiln/cmd/internal/signals"
	"github.com/kilnbuild/kiln/internal/version"
	"github.com/spf13/cobra"
)

// run carries out a command line and returns the exit status.
func run(a *app.App, args []string) int {
	args = complete.Args(args)
	a.Args = args
	return Execute(a, Root(a), args)
}

// Execute carries out a command line of root, and returns the exit status. All that goes wrong is printed here.
func Execute(a *app.App, root *cobra.Command, args []string) (exit int) {
	ctx, stop := signals.Notify(context.Background())
	defer stop()
	defer func() {
		if r := recover(); r != nil {
			a.Complain(fmt.Sprintf("internal error: %v; please report it with the output of --debug", r))
			if a.Debug {
				_, _ = a.Stderr.Write(debug.Stack())
			}
			exit = app.ExitInternal
		}
	}()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if done, ok := errors.AsType[*app.DoneError](err); ok {
		return done.Status
	}
	if s := signals.Cause(ctx); s != nil {
		a.Complain(s.Error())
		return s.Status()
	}
	a.PrintError(err)
	return app.ExitStatus(err)
}

// Root returns the command of kiln with all others below it, of which groups are made only where a.Args names them.
func Root(a *app.App) *cobra.Command {
	root := &cobra.Command{
		Use:   "kiln COMMAND",
		Short: "Build OCI images from Dockerfiles, without a daemon",
		Example: `  kiln build -t app .                                # into kiln's own store
  kiln build -t registry.example/app:v1 --push .     # to a registry
  kiln build -o out .                                # only the files
  kiln explain                                       # what was built, and why`,
		Version:           version.String(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.ArbitraryArgs,
		RunE:              app.HelpOrUnknown,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	cobra.EnableCommandSorting = false // help lists them as they are added
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetVersionTemplate("kiln {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return commandOrFlagError(a, cmd, err) })
	root.PersistentFlags().StringVar(&a.RootDir, "root", "", "`DIR` where images, layers and the cache are kept (default $KILN_ROOT; else /var/lib/kiln "+
		"for root, $XDG_DATA_HOME/kiln or ~/.local/share/kiln for others)")
	root.PersistentFlags().BoolVarP(&a.Debug, "debug", "D", false, "print debug messages, and stack traces of internal errors")
	root.Flags().BoolP("version", "v", false, "print the version of kiln")
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		_ = help.Write(a.Stdout, cmd, help.Width(os.Stdout)) // cobra has no use for its error
	})
	add := func(id, title string, commands ...*cobra.Command) {
		root.AddGroup(&cobra.Group{ID: id, Title: title})
		for _, cmd := range commands {
			cmd.GroupID = id
			root.AddCommand(cmd)
		}
	}
	add("build", "Build", buildcmd.Build(a), buildcmd.Bake(a), buildcmd.Compose(a), buildcmd.Lock(a), explainCommand(a), runcmd.Run(a),
		serveCommand())
	add("images", "Images", imagecmd.Images(a), imagecmd.Inspect(a), imagecmd.History(a), imagecmd.Diff(a), imagecmd.Cp(a), imagecmd.Tag(a),
		imagecmd.Rmi(a), imagecmd.Save(a), imagecmd.Load(a), attestCommand(a))
	add("registries", "Registries", imagecmd.Pull(a), imagecmd.Push(a), imagecmd.Sign(a), imagecmd.Verify(a), imagetoolsCommand(a), imagecmd.Login(a), imagecmd.Logout(a))
	add("store", "Store", duCommand(a), pruneCommand(a), checkCommand(a), cacheCommand(a))
	add(otherNames, "Other names", groups(a)...)
	helpCmd := helpCommand()
	add("kiln", "About kiln", doctorCommand(a), completionCommand(a), manCommand(), versionCommand(a), helpCmd)
	root.SetHelpCommand(helpCmd)
	if complete.Wanted(a.Args) {
		complete.Register(root, a.FindRoot)
	}
	return root
}

// helpCommand returns the command of that name.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND...]",
		Short:   "Describe a command",
		Example: "  kiln help build\n  kiln help image ls",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			if len(rest) > 0 && found.HasSubCommands() {
				return app.HelpOrUnknown(found, rest)
			}
			return found.Help()
		},
	}
}
