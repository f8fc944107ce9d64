// Package app is what all commands of kiln have in common: the terminal, the root directory, the progress of what they do, and errors with
// their exit statuses. It does not know the commands.
package app

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/cmd/internal/console"
	"github.com/kilnbuild/kiln/cmd/internal/signals"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/store"
	"github.com/kilnbuild/kiln/store/images"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// App is one run of the command line.
type App struct {
	// Stdout and Stderr make what others wrote fit for a terminal, where they are one.
	Stdout io.Writer
	Stderr io.Writer
	// View is standard error for the progress view, which has the terminal for itself.
	View io.Writer
	// RootDir and Debug are the flags of all commands.
	RootDir string
	Debug   bool
	// registries are the flags of commands that use registries.
	registries config.RegistryFlags
	// Args is the command line: it decides which groups of commands are made, and errors are about parts of it that were not parsed.
	Args []string
	// Frontends makes what runs frontends that are images; nil for a kiln that cannot, and that kilnd takes the place of where it has to.
	Frontends Frontends
	// told is an error that TellFailure has printed.
	told error
	// loaded is the configuration, and config the same once the root directory was entered.
	loaded, config *config.Config
}

// New returns an App that prints to stdout and stderr.
func New(stdout, stderr io.Writer) *App {
	return &App{Stdout: termtext.Writer(stdout), Stderr: termtext.Writer(stderr), View: stderr}
}

// AsRoot returns run in a form that is root's where kiln is not: in a user namespace, by a kiln of its own, which does and says
// everything.
func (a *App) AsRoot(run func(cmd *cobra.Command, args []string) error) func(cmd *cobra.Command, args []string) error {
	return a.asRoot(run, func(ctx context.Context, to chan<- syscall.Signal) func() {
		stop := context.AfterFunc(ctx, func() { to <- signals.Cause(ctx).Signal })
		return func() { stop() }
	})
}

// AsRootForwarding is like AsRoot for a command that redirects signals: the other kiln is told all of them, and these more.
func (a *App) AsRootForwarding(run func(cmd *cobra.Command, args []string) error, more ...os.Signal) func(cmd *cobra.Command, args []string) error {
	return a.asRoot(run, func(ctx context.Context, to chan<- syscall.Signal) func() {
		return signals.Redirect(ctx, func(s syscall.Signal) {
			select {
			case to <- s:
			default: // so many have not been taken that one more makes no difference
			}
		}, more...)
	})
}

// asRoot is AsRoot, where forward has signals passed on to the other kiln until the returned function is called.
func (a *App) asRoot(run func(cmd *cobra.Command, args []string) error, forward func(ctx context.Context, to chan<- syscall.Signal) func()) func(cmd *cobra.Command, args []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if !userns.Needed() {
			return run(cmd, args)
		}
		ctx := cmd.Context()
		if _, root, err := a.findRoot(); err == nil { // the other says what is wrong with it
			a.warnOfRoot(root)
		}
		to := make(chan syscall.Signal, 64)
		defer forward(ctx, to)()
		// If the other is killed while a program has the terminal, nobody else gives it back.
		defer console.Keep(os.Stdin)()
		status, err := userns.Run(to)
		if err != nil {
			return &InternalError{err}
		}
		return &DoneError{status}
	}
}

// DoneError is a command that another kiln has carried out, and said everything about.
type DoneError struct{ Status int }

func (e *DoneError) Error() string { return fmt.Sprintf("exit status %d", e.Status) }

// Enter reads the configuration and makes the root directory the working directory, once. Paths of the user's are absolute from then
// on.
func (a *App) Enter() (*config.Config, error) {
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
		return nil, fmt.Errorf("open image store %s: %w", rootdir.Shown(root), err)
	}
	a.config = cfg
	return cfg, nil
}

// RegistryFlags adds the flags of a command that uses registries: each such command has them all.
func (a *App) RegistryFlags(flags *pflag.FlagSet) {
	r := &a.registries
	flags.StringArrayVar(&r.Mirrors, "registry-mirror", nil, "`[HOST=]MIRROR` ask MIRROR before the registry HOST (default docker.io)")
	flags.StringArrayVar(&r.Insecure, "insecure-registry", nil, "`HOST` do not check the certificate of the registry HOST, and speak plain HTTP if it does not speak HTTPS")
	flags.StringArrayVar(&r.CA, "registry-ca", nil, "`[HOST=]FILE` trust the authorities in FILE for the registry HOST (default every registry)")
}

// Insecure has the registries of images treated as --insecure-registry does.
func (a *App) Insecure(images ...string) {
	for _, name := range images {
		if ref, err := imagename.Parse(name); err == nil { // who uses the name says what is wrong with it
			a.registries.Insecure = append(a.registries.Insecure, ref.Registry)
		}
	}
}

// Configuration returns the configuration of kiln.toml and of the command line. Paths in the latter are relative to the working directory
// of the user. An error of the command line is an *input.Error.
func (a *App) Configuration() (*config.Config, error) {
	if a.loaded == nil {
		cfg, err := config.Load()
		if err == nil {
			err = a.registries.Apply(cfg)
		}
		if err != nil {
			return cfg, err
		}
		a.loaded = cfg
	}
	return a.loaded, nil
}

// FindRoot returns the path of the root directory, which may not exist.
func (a *App) FindRoot() (string, error) {
	_, root, err := a.findRoot()
	return root, err
}

// findRoot reads the configuration and finds the root directory.
func (a *App) findRoot() (*config.Config, string, error) {
	cfg, err := a.Configuration()
	if err != nil {
		return nil, "", err
	}
	root, err := cfg.RootDir(a.RootDir)
	given := a.RootDir
	if err := rootdir.Absolute(&given); err != nil { // for messages
		return nil, "", err
	}
	return cfg, root, err
}

// warnOfRoot says who else could replace the root directory. It has to know users as the machine does, so in a user namespace of
// kiln's own it comes too late.
func (a *App) warnOfRoot(root string) {
	doubts, err := rootdir.Doubts(root, os.Geteuid())
	if err != nil || len(doubts) == 0 {
		return // whoever opens it says why it cannot
	}
	more := ""
	if n := len(doubts) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	a.Complain(fmt.Sprintf("warning: %s%s, on the path of the root directory %s, %s: "+
		"they could replace the root directory between two commands", doubts[0].Path, more, root, doubts[0]))
}

// pathVariables are those of the environment that hold a path, or several, for kiln itself.
var pathVariables = []string{
	"HOME", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR",
}

// absoluteEnvironment makes the paths absolute that are relative to the working directory.
func absoluteEnvironment() error {
	for _, name := range pathVariables {
		list := filepath.SplitList(os.Getenv(name))
		for i := range list {
			var err error
			if err = rootdir.Absolute(&list[i]); err != nil {
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

// Kiln is a root directory that is open, and what works with it.
type Kiln struct {
	Config  *config.Config
	Root    *store.Root
	Images  *images.Images
	Builder *build.Builder
}

// WithRoot calls f with the root directory open.
func (a *App) WithRoot(ctx context.Context, f func(k *Kiln) error) (err error) {
	cfg, err := a.Enter()
	if err != nil {
		return &InternalError{err}
	}
	root, err := store.Open(ctx, ".", cfg)
	if err != nil {
		return &InternalError{err}
	}
	defer func() {
		closeErr := root.Close()
		if closeErr != nil && err == nil {
			err = &InternalError{closeErr}
		} else if closeErr != nil {
			fmt.Fprintf(a.Stderr, "WARNING: %s\n", termtext.Line(closeErr.Error()))
		}
		for _, left := range root.Left() {
			fmt.Fprintf(a.Stderr, "WARNING: a killed kiln has left in %s what cannot be removed, and only takes space: %s\n",
				termtext.Line(rootdir.Shown(".")), termtext.Line(left.Error()))
		}
	}()
	client := registry.New(cfg.Registries)
	builder, err := build.New(root, client, cfg)
	if err == nil && a.Frontends != nil {
		builder.Frontends, err = a.Frontends(builder, root, a.Complain)
	}
	if err != nil {
		return &InternalError{err}
	}
	return f(&Kiln{cfg, root, images.New(root, client), builder})
}
