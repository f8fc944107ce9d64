package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/kilnbuild/kiln/cmd/kiln/internal/app"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/buildcmd"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/imagecmd"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/signals"
	"github.com/spf13/cobra"
)

// run carries out a command line and returns the exit status.
func run(a *app.App, args []string) int {
	a.Args = args
	return execute(a, rootCommand(a), args)
}

// execute carries out a command line of root. All that goes wrong is printed here.
func execute(a *app.App, root *cobra.Command, args []string) (exit int) {
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

func rootCommand(a *app.App) *cobra.Command {
	root := &cobra.Command{
		Use:               "kiln",
		Short:             "Build OCI images from Dockerfiles, without a daemon",
		Version:           version(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.ArbitraryArgs,
		RunE:              helpOrUnknown,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetVersionTemplate("kiln {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return commandOrFlagError(a, cmd, err) })
	root.PersistentFlags().StringVar(&a.RootDir, "root", "", "directory of images, layers and cache (default $KILN_ROOT, else /var/lib/kiln for root, and $XDG_DATA_HOME/kiln or ~/.local/share/kiln)")
	root.PersistentFlags().BoolVarP(&a.Debug, "debug", "D", false, "say what need not concern the user, and print the stack of an internal error")
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(buildcmd.Build(a), buildcmd.Compose(a), imagecmd.Images(a), imagecmd.Tag(a), imagecmd.Rmi(a), imagecmd.Inspect(a), imagecmd.History(a), imagecmd.Diff(a), imagecmd.Cp(a), imagecmd.Push(a),
		imagecmd.Pull(a), imagecmd.Save(a), imagecmd.Load(a), imagecmd.Login(a), imagecmd.Logout(a), pruneCommand(a), duCommand(a), checkCommand(a), explainCommand(a), doctorCommand(a), versionCommand(a))
	root.AddCommand(groups(a)...)
	return root
}
