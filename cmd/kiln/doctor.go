package main

import (
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/spf13/cobra"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Try what builds need of this machine, and say what to change",
		Long: `Try what builds need of this machine for this user, and print a line for each: "ok", "lacks" for what only some builds need, or "FAILS"
for what none runs without. The exit status is 0 if a build can run, and else 1.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !userns.Needed() {
				return a.examine(cmd)
			}
			err := a.asRoot(nil)(cmd, args)
			if e, ok := err.(*internalError); ok {
				// There is no user namespace, so nothing else can be tried.
				d := &report{app: a}
				_, cfgErr := config.Load()
				for _, f := range build.Surroundings(cfgErr) {
					d.say(f)
				}
				d.say(build.Diagnosis{What: "user", Text: e.Error(), Severity: build.Fatal})
				return d.end()
			}
			return err
		},
	}
}

func (a *app) examine(cmd *cobra.Command) error {
	d := &report{app: a}
	_, cfgErr := config.Load()
	for _, f := range build.Surroundings(cfgErr) {
		d.say(f)
	}
	if cfgErr == nil {
		err := a.withBuilder(cmd.Context(), func(b *build.Builder) error { return b.Examine(cmd.Context(), d.say) })
		if e, ok := err.(*internalError); ok {
			d.say(build.Diagnosis{What: "root directory", Text: e.Error(), Severity: build.Fatal})
		} else if err != nil {
			return err
		}
	}
	return d.end()
}

// report prints what was found.
type report struct {
	*app
	fatal bool
	err   error // of printing
}

func (d *report) say(f build.Diagnosis) {
	d.fatal = d.fatal || f.Severity == build.Fatal
	word := map[build.Severity]string{build.Fine: "ok", build.Lacking: "lacks", build.Fatal: "FAILS"}[f.Severity]
	text := termtext.Line(strings.ReplaceAll(f.Text, "\n", " "))
	if _, err := fmt.Fprintf(d.stdout, "%-6s %-22s %s\n", word, f.What, text); err != nil {
		d.err = err
	}
}

func (d *report) end() error {
	if d.err != nil {
		return d.err
	}
	if d.fatal {
		return &doneError{exitFailed}
	}
	return nil
}
