package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/report"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/signals"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/progress"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/store"
	"github.com/kilnbuild/kiln/store/images"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// run carries out a command line and returns the exit status.
func (a *app) run(args []string) int {
	a.args = args
	return a.execute(a.rootCommand(), args)
}

// execute carries out a command line of root. All that goes wrong is printed here.
func (a *app) execute(root *cobra.Command, args []string) (exit int) {
	ctx, stop := signals.Notify(context.Background())
	defer stop()
	defer func() {
		if r := recover(); r != nil {
			a.complain(fmt.Sprintf("internal error: %v; please report it with the output of --debug", r))
			if a.debug {
				_, _ = a.stderr.Write(debug.Stack())
			}
			exit = exitInternal
		}
	}()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if done, ok := errors.AsType[*doneError](err); ok {
		return done.status
	}
	if s := signals.Cause(ctx); s != nil {
		a.complain(s.Error())
		return s.Status()
	}
	a.printError(err)
	return exitStatus(err)
}

func (a *app) rootCommand() *cobra.Command {
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
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetVersionTemplate("kiln {{.Version}}\n")
	root.SetFlagErrorFunc(a.commandOrFlagError)
	root.PersistentFlags().StringVar(&a.rootDir, "root", "", "directory of images, layers and cache (default $KILN_ROOT, else /var/lib/kiln for root, and $XDG_DATA_HOME/kiln or ~/.local/share/kiln)")
	root.PersistentFlags().BoolVarP(&a.debug, "debug", "D", false, "say what need not concern the user, and print the stack of an internal error")
	root.SuggestionsMinimumDistance = 2
	root.AddCommand(a.buildCommand(), a.composeCommand(), a.imagesCommand(), a.tagCommand(), a.rmiCommand(), a.inspectCommand(), a.historyCommand(), a.diffCommand(), a.cpCommand(), a.pushCommand(),
		a.pullCommand(), a.saveCommand(), a.loadCommand(), a.loginCommand(), a.logoutCommand(), a.pruneCommand(), a.duCommand(), a.checkCommand(), a.explainCommand(), a.doctorCommand(), a.versionCommand())
	root.AddCommand(a.groups()...)
	return root
}

// exactArgs asks for the arguments that are named.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(names) == 0 && len(args) > 0 {
			return usageErrorf("%s takes no argument, and got %s", cmd.CommandPath(), report.Count(len(args), "argument"))
		}
		if len(args) != len(names) {
			return usageErrorf("%s takes %s, and got %s", cmd.CommandPath(), strings.Join(names, " and "), report.Count(len(args), "argument"))
		}
		return nil
	}
}

// oneAtMost allows one argument or none.
func oneAtMost(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usageErrorf("%s takes one %s at most, and got %s", cmd.CommandPath(), name, report.Count(len(args), "argument"))
		}
		return nil
	}
}

func minArgs(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageErrorf("%s takes at least one %s", cmd.CommandPath(), name)
		}
		return nil
	}
}

// asRoot returns run in a form that is root's where kiln is not: in a user namespace, by a kiln of its own, which does and says
// everything.
func (a *app) asRoot(run func(cmd *cobra.Command, args []string) error) func(cmd *cobra.Command, args []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if !userns.Needed() {
			return run(cmd, args)
		}
		ctx := cmd.Context()
		if _, root, err := a.findRoot(); err == nil { // the other says what is wrong with it
			a.warnOfRoot(root)
		}
		status, err := userns.Run(ctx, func() syscall.Signal { return signals.Cause(ctx).Signal })
		if err != nil {
			return &internalError{err}
		}
		return &doneError{status}
	}
}

// doneError is a command that another kiln has carried out, and said everything about.
type doneError struct{ status int }

func (e *doneError) Error() string { return fmt.Sprintf("exit status %d", e.status) }

// enter reads the configuration and makes the root directory the working directory, once. Paths of the user's are absolute from then
// on.
func (a *app) enter() (*config.Config, error) {
	if a.config != nil {
		return a.config, nil
	}
	cfg, root, err := a.findRoot()
	if err != nil {
		return nil, err
	}
	if !userns.Inside() { // the kiln that started this one has warned
		a.warnOfRoot(root)
	}
	if err := absoluteEnvironment(); err != nil {
		return nil, err
	}
	if err := rootdir.Enter(root); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", root, err)
	}
	a.config = cfg
	return cfg, nil
}

// findRoot reads the configuration and finds the root directory.
func (a *app) findRoot() (*config.Config, string, error) {
	cfg, err := config.Load()
	if err != nil {
		return nil, "", err
	}
	root, err := cfg.RootDir(a.rootDir)
	return cfg, root, err
}

// warnOfRoot says who else could replace the root directory. It has to know users as the machine does, so in a user namespace of
// kiln's own it comes too late.
func (a *app) warnOfRoot(root string) {
	doubts, err := rootdir.Doubts(root, os.Geteuid())
	if err != nil || len(doubts) == 0 {
		return // whoever opens it says why it cannot
	}
	more := ""
	if n := len(doubts) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	a.complain(fmt.Sprintf("warning: %s%s, on the path of the root directory %s, %s: "+
		"they could replace the root directory between two commands", doubts[0].Path, more, root, doubts[0]))
}

// pathVariables are those of the environment that hold a path, or several, for kiln itself.
var pathVariables = []string{
	"HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR",
}

// absoluteEnvironment makes the paths absolute that are relative to the working directory.
func absoluteEnvironment() error {
	for _, name := range pathVariables {
		list := filepath.SplitList(os.Getenv(name))
		for i := range list {
			var err error
			if list[i], err = filepath.Abs(list[i]); err != nil {
				return err
			}
		}
		if len(list) == 0 {
			continue
		}
		if err := os.Setenv(name, strings.Join(list, string(filepath.ListSeparator))); err != nil {
			return err
		}
	}
	return nil
}

// kiln is a root directory that is open, and what works with it.
type kiln struct {
	config  *config.Config
	root    *store.Root
	images  *images.Images
	builder *build.Builder
}

// withRoot calls f with the root directory open.
func (a *app) withRoot(ctx context.Context, f func(k *kiln) error) (err error) {
	cfg, err := a.enter()
	if err != nil {
		return &internalError{err}
	}
	root, err := store.Open(ctx, ".", cfg)
	if err != nil {
		return &internalError{err}
	}
	defer func() {
		closeErr := root.Close()
		if closeErr != nil && err == nil {
			err = &internalError{closeErr}
		} else if closeErr != nil {
			fmt.Fprintf(a.stderr, "WARNING: %s\n", termtext.Line(closeErr.Error()))
		}
		for _, left := range root.Left() {
			fmt.Fprintf(a.stderr, "WARNING: a killed kiln has left in %s what cannot be removed, and only takes space: %s\n",
				termtext.Line(rootdir.Shown(".")), termtext.Line(left.Error()))
		}
	}()
	client := registry.New(cfg.Registries)
	builder, err := build.New(root, client, cfg)
	if err != nil {
		return &internalError{err}
	}
	return f(&kiln{cfg, root, images.New(root, client), builder})
}

// progressMode returns the mode that the flag, or else the environment, says, and what said so.
func progressMode(flag string) (mode, from string) {
	mode, from = flag, "--progress"
	for _, name := range []string{"KILN_PROGRESS", "BUILDKIT_PROGRESS"} {
		if mode == "" {
			mode, from = os.Getenv(name), name
		}
	}
	return mode, from
}

// withProgress calls f with a stream whose events are shown in the progress mode. A broken standard error ends ctx: nobody sees the build
// any more.
func (a *app) withProgress(ctx context.Context, flag string, f func(ctx context.Context, s *events.Stream) error) error {
	mode, from := progressMode(flag)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p, err := progress.New(mode, signals.Watch(a.view, cancel))
	if err != nil {
		return usageErrorf("%s: %w", from, err)
	}
	failures := &progress.Failures{}
	s := events.New(failures, p)
	err = f(ctx, s)
	s.Close()
	p.Close()
	if err != nil {
		return &progressError{err: err, failures: failures}
	}
	return nil
}

// progressFlag adds --progress, without its default: that is looked up when the command runs.
func progressFlag(flags *pflag.FlagSet, mode *string) {
	flags.StringVar(mode, "progress", "", "how progress is shown: auto, plain, tty, rawjson, quiet, none (default $KILN_PROGRESS, $BUILDKIT_PROGRESS, else auto)")
}
