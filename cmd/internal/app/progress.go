package app

import (
	"context"
	"fmt"
	"os"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/cmd/internal/signals"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/progress"
	"github.com/spf13/pflag"
)

// ProgressMode returns the mode that the flag, or else the environment, says, and what said so.
func ProgressMode(flag string) (mode, from string) {
	mode, from = flag, "--progress"
	for _, name := range []string{"KILN_PROGRESS", "BUILDKIT_PROGRESS"} {
		if mode == "" {
			mode, from = os.Getenv(name), name
		}
	}
	return mode, from
}

// WithProgress calls f with a stream whose events are shown in the progress mode. A broken standard error ends ctx: nobody sees the build
// any more.
func (a *App) WithProgress(ctx context.Context, flag string, f func(ctx context.Context, s *events.Stream) error) error {
	mode, from := ProgressMode(flag)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p, err := progress.New(mode, signals.Watch(a.View, cancel))
	if err != nil {
		return UsageErrorf("%s: %w", from, err)
	}
	failures := &progress.Failures{}
	s := events.New(failures, p)
	err = f(context.WithValue(ctx, shownKey{}, shown{failures, p}), s)
	s.Close()
	p.Close()
	if err != nil {
		return &ProgressError{Err: err, Failures: failures}
	}
	return nil
}

// shown is the progress that a context of WithProgress has.
type shown struct {
	failures *progress.Failures
	printer  *progress.Printer
}

type shownKey struct{}

// EndProgress ends the view of progress before its end, and leaves the terminal to whoever comes next. ctx is that of WithProgress.
func EndProgress(ctx context.Context) {
	if s, ok := ctx.Value(shownKey{}).(shown); ok {
		s.printer.Close()
	}
}

// TellFailure prints an error of a build before the build ends, as PrintError does, after EndProgress.
func (a *App) TellFailure(ctx context.Context, err error, r *build.Result) {
	EndProgress(ctx)
	s, _ := ctx.Value(shownKey{}).(shown)
	a.PrintError(&ProgressError{Err: FailedBuild(err, r), Failures: s.failures})
	a.told = err
}

// ProgressFlag adds --progress, without its default: that is looked up when the command runs.
func ProgressFlag(flags *pflag.FlagSet, mode *string) {
	flags.Var((*progressMode)(mode), "progress", "`MODE` how to show progress: auto, plain, tty, rawjson, quiet or none (default $KILN_PROGRESS, $BUILDKIT_PROGRESS, else auto)")
}

// progressMode is the value of --progress: what is no mode is refused before anything is done.
type progressMode string

// Set implements pflag.Value.
func (m *progressMode) Set(value string) error {
	*m = progressMode(value)
	if value == "" {
		return nil
	}
	if err := progress.CheckMode(value); err != nil {
		return &input.Error{Err: fmt.Errorf("--progress: %w", err)}
	}
	return nil
}

// String implements pflag.Value.
func (m *progressMode) String() string { return string(*m) }

// Type implements pflag.Value.
func (m *progressMode) Type() string { return "string" }

// QuietMode returns the progress mode that -q and --progress ask for together.
func QuietMode(quiet bool, mode string) string {
	if quiet {
		return "quiet"
	}
	return mode
}
