// Package runcmd has the command that runs an image: its flags, the user's terminal and signals, and its exit status. It does not know how
// anything is run.
package runcmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/console"
	"github.com/kilnbuild/kiln/cmd/internal/signals"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/signalname"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/run"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/spf13/cobra"
)

// statusFailed is the exit status if kiln failed, and not the program, as with docker run. Usage errors are among that: 2 may be the
// program's.
const statusFailed = 125

// forwarded are the signals that the program gets besides those that end other commands. Those of job control are kiln's own.
var forwarded = func() []os.Signal {
	all := []os.Signal{syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM}
	for s := syscall.Signal(34); s <= 64; s++ { // the real-time signals
		all = append(all, s)
	}
	return all
}

// maxStops is how many times a program may be told to stop until it is killed.
const maxStops = 3

// Run returns the command of that name.
func Run(a *app.App) *cobra.Command {
	var f flags
	failed := func(err error) error {
		if err == nil || errors.As(err, new(*app.StatusError)) || errors.As(err, new(*app.DoneError)) {
			return err
		}
		return &app.StatusError{Err: err, Status: statusFailed}
	}
	start := a.AsRootForwarding(func(cmd *cobra.Command, args []string) error { return f.run(cmd.Context(), a, args) }, forwarded()...)
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND] [ARG...]",
		Short: "Run a program of an image, and keep nothing of it",
		Long: "Run a program of an image in the foreground, in the sandbox that RUN has. Nothing is kept of what it changes.\n\n" +
			"The exit status is the program's: 128 and the number of a signal if one ended it, 127 if it was not found, 126 if it could not\n" +
			"be executed; 125 if kiln failed. Signals are passed on to the program; the third SIGINT, SIGTERM or SIGHUP kills it.",
		Example: `  kiln run --rm -it app sh
  kiln run -p 8080:80 -v ./site:/srv:ro app
  kiln run -e DEBUG=1 -u nobody --entrypoint id app`,
		Args: func(cmd *cobra.Command, args []string) error { return failed(app.MinArgs("IMAGE")(cmd, args)) },
		RunE: func(cmd *cobra.Command, args []string) error { return failed(start(cmd, args)) },
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return failed(app.FlagError(cmd, err)) })
	cmd.Flags().SetInterspersed(false)
	f.add(cmd.Flags())
	cmd.Flags().Bool("help", false, "help for run") // as -h is the host name, as with docker run
	return cmd
}

func (f *flags) run(ctx context.Context, a *app.App, args []string) error {
	o, err := f.options(args)
	if err != nil {
		return err
	}
	if f.interactive && f.tty && !termtext.IsTerminal(os.Stdin) {
		return usagef("-it needs a terminal, and standard input is none: leave out -t")
	}
	var stop syscall.Signal
	if f.stop.signal != "" {
		if stop, err = signalname.Parse(f.stop.signal); err != nil {
			return usagef("--stop-signal: %w", err)
		}
	}
	o.Warn = func(text string) { a.Complain("warning: " + text) }
	return a.WithRoot(ctx, func(k *app.Kiln) error {
		runner, err := run.New(k.Root, k.Images, k.Config)
		if err != nil {
			return err
		}
		var c *run.Container
		if err := a.WithProgress(ctx, app.QuietMode(f.quiet, f.progress), func(ctx context.Context, s *events.Stream) (err error) {
			c, err = runner.Prepare(ctx, o, s)
			return err
		}); err != nil {
			return err
		}
		if stop == 0 && c.StopSignal != "" {
			if stop, err = signalname.Parse(c.StopSignal); err != nil {
				return errors.Join(fmt.Errorf("the image's STOPSIGNAL: %w", err), c.Close())
			}
		}
		for _, p := range c.Ports {
			if !contains(o.Ports, p) { // the user does not know it yet
				a.Complain(fmt.Sprintf("%s leads to port %d/%s of the container", p.Host, p.Inside, p.Protocol))
			}
		}
		err = f.start(ctx, a, c, stop)
		if closeErr := c.Close(); closeErr != nil {
			a.Complain("warning: " + closeErr.Error())
		}
		return err
	})
}

func contains[T comparable](list []T, v T) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

// errStopped is why a program is killed that does not stop.
var errStopped = errors.New("it was told to stop, and did not")

// start runs the program of a container with the user's terminal and signals. The error is a *app.DoneError if the program ended, with its
// exit status.
func (f *flags) start(ctx context.Context, a *app.App, c *run.Container, stop syscall.Signal) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	toProgram := make(chan syscall.Signal, 64)
	var stops atomic.Int32
	restore := signals.Redirect(ctx, func(s syscall.Signal) {
		switch s {
		case syscall.SIGTERM:
			if f.stop.timeout >= 0 && stops.Load() == 0 {
				time.AfterFunc(time.Duration(f.stop.timeout)*time.Second, func() { kill(errStopped) })
			}
			if stop != 0 {
				s = stop
			}
			fallthrough
		case syscall.SIGINT, syscall.SIGHUP:
			if stops.Add(1) >= maxStops {
				kill(errStopped)
				return
			}
		}
		select {
		case toProgram <- s:
		default: // so many have not been taken that one more makes no difference
		}
	}, forwarded()...)
	defer restore()

	stdio := sandbox.Stdio{Stdout: os.Stdout, Stderr: os.Stderr}
	if f.interactive {
		stdio.Stdin = os.Stdin
	}
	cooked := func() {}
	if f.tty {
		var err error
		if stdio.Terminal, cooked, err = console.Lend(stdio.Stdin, os.Stdout); err != nil {
			return err
		}
	}
	status, err := c.Run(ctx, stdio, toProgram)
	cooked()
	if errors.Is(err, errStopped) {
		return &app.DoneError{Status: 128 + int(syscall.SIGKILL)}
	}
	if errors.As(err, new(*sandbox.ExecError)) {
		return &app.StatusError{Err: err, Status: status.ExitCode}
	}
	if err != nil {
		return err
	}
	if status.OOMKills > 0 {
		a.Complain("warning: the container ran out of memory, and processes of it were killed (--memory)")
	}
	return &app.DoneError{Status: status.ExitCode}
}
