package buildcmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/console"
	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// debugFlags say what happens when a RUN fails.
type debugFlags struct {
	shell   bool
	onError string
	keep    string
}

func (f *debugFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.shell, "debug-shell", false, "open a shell in the root file system of a failed RUN, as it was left, with its mounts and network")
	flags.StringVar(&f.onError, "on-error", "fail", "`WHAT` what to do when a RUN fails: fail, or ask on a terminal whether to open a shell or keep files")
	flags.StringVar(&f.keep, "keep-failed", "", "`DIR` write the files that a failed RUN changed to DIR, which must be empty or not exist")
	help.Group(flags, "When a RUN fails")
}

// handler returns what is done when a RUN fails, nil for nothing. readsStdin says that the build reads standard input.
func (f *debugFlags) handler(cmd *cobra.Command, a *app.App, readsStdin bool) (func(context.Context, *build.Failure), error) {
	d := &debugger{a: a, cmd: cmd, shell: f.shell, keep: f.keep, out: os.Stderr}
	if !termtext.IsTerminal(d.out) {
		d.out = os.Stdout
	}
	terminal := termtext.IsTerminal(os.Stdin) && termtext.IsTerminal(d.out) && !readsStdin
	switch f.onError {
	case "fail":
	case "ask":
		d.ask = terminal
	default:
		return nil, app.UsageErrorf("--on-error %q: use fail or ask", f.onError)
	}
	switch {
	case f.shell && readsStdin:
		return nil, app.UsageErrorf("--debug-shell: standard input is for the shell, and the build reads its context or Dockerfile there")
	case f.shell && !terminal:
		return nil, app.UsageErrorf("--debug-shell needs a terminal; --keep-failed DIR keeps the files of a RUN that fails without one")
	}
	if f.keep != "" {
		if err := checkEmpty(f.keep); err != nil {
			return nil, app.UsageErrorf("--keep-failed: %w", err)
		}
	}
	if !d.shell && !d.ask && d.keep == "" {
		return nil, nil
	}
	var err error
	if d.dir, err = os.Getwd(); err != nil {
		return nil, err
	}
	return d.failed, nil
}

// checkEmpty returns an error unless there is nothing at a path, or an empty directory.
func checkEmpty(name string) error {
	entries, err := os.ReadDir(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("the directory %s is not empty", name)
	}
	return err
}

// debugger does what the user wants when a RUN fails.
type debugger struct {
	a          *app.App
	cmd        *cobra.Command
	shell, ask bool
	keep       string
	// dir is what the user's paths are relative to.
	dir string
	// out is the terminal.
	out *os.File
}

func (d *debugger) failed(ctx context.Context, f *build.Failure) {
	app.EndProgress(ctx)
	if d.shell || d.ask {
		d.a.TellFailure(ctx, f.Err, f.Result)
	}
	if d.shell {
		d.open(ctx, f)
	}
	for d.ask && ctx.Err() == nil {
		d.question(ctx, f)
	}
	if d.keep != "" && ctx.Err() == nil {
		d.write(ctx, f, d.keep)
	}
}

// question asks what to do, and does it.
func (d *debugger) question(ctx context.Context, f *build.Failure) {
	switch d.read("s: open a shell in the step's root file system, k: keep the files that it changed, q: quit? ") {
	case "s", "shell":
		d.open(ctx, f)
	case "k", "keep":
		name := d.keep
		if name == "" {
			name = d.read("directory: ")
		}
		if err := checkEmpty(d.path(name)); err != nil || name == "" {
			if err != nil {
				d.a.Complain(err.Error())
			}
			return
		}
		d.write(ctx, f, name)
		d.ask, d.keep = false, "" // nothing can be run there any more
	case "q", "quit":
		d.ask = false
	}
}

// read returns what the user answers; "q" when they end their input.
func (d *debugger) read(question string) string {
	fmt.Fprint(d.out, question)
	text, err := app.Ask(d.cmd, func() (string, error) {
		line := make([]byte, 4096) // a terminal gives one line at a time, and no more than that
		n, err := os.Stdin.Read(line)
		return string(line[:n]), err
	})
	if err != nil {
		fmt.Fprintln(d.out)
		return "q"
	}
	return strings.TrimSpace(text)
}

// open opens a shell.
func (d *debugger) open(ctx context.Context, f *build.Failure) {
	d.a.Complain("opening a shell in the root file system of the step, as it was left; exit leaves it, and then the build fails")
	terminal, restore, err := console.Lend(os.Stdin, d.out)
	if err == nil {
		err = f.Shell(ctx, sandbox.Stdio{Stdin: os.Stdin, Stdout: d.out, Terminal: terminal})
		restore()
	}
	switch {
	case err == nil || ctx.Err() != nil:
	case errors.As(err, new(*build.NoShellError)) && d.keep == "":
		d.a.Complain(err.Error() + "; --keep-failed DIR writes the files that the step changed to a directory")
	default:
		d.a.Complain(err.Error())
	}
}

// path returns a path that the user named as an absolute one.
func (d *debugger) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(d.dir, name)
}

// write writes the files that the step changed to a directory.
func (d *debugger) write(ctx context.Context, f *build.Failure, name string) {
	kept, err := f.Keep(ctx, d.path(name))
	if err != nil {
		d.a.Complain(fmt.Sprintf("keep the files of the step in %s: %v", name, err))
		return
	}
	text := "the files that the step changed are in " + kept.Files
	if kept.Deleted != "" {
		text += ", and the paths of those that it deleted in " + kept.Deleted
	}
	if n := kept.Dropped.Devices; n > 0 {
		text += fmt.Sprintf("; without %d devices", n)
	}
	d.a.Complain(text)
}
