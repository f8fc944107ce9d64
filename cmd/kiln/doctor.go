package main

import (
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/doctor"
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
				d := &diagnoses{app: a}
				_, cfgErr := config.Load()
				for _, f := range doctor.Surroundings(cfgErr) {
					d.say(f)
				}
				d.say(doctor.Diagnosis{What: "user", Text: e.Error(), Severity: doctor.Fatal})
				return d.end()
			}
			return err
		},
	}
}

func (a *app) examine(cmd *cobra.Command) error {
	d := &diagnoses{app: a}
	_, cfgErr := config.Load()
	for _, f := range doctor.Surroundings(cfgErr) {
		d.say(f)
	}
	if cfgErr == nil {
		err := a.withRoot(cmd.Context(), func(k *kiln) error { return doctor.Examine(cmd.Context(), k.root, k.config, d.say) })
		if e, ok := err.(*internalError); ok {
			d.say(doctor.Diagnosis{What: "root directory", Text: e.Error(), Severity: doctor.Fatal})
		} else if err != nil {
			return err
		}
	}
	return d.end()
}

// diagnoses prints what doctor found.
type diagnoses struct {
	*app
	fatal bool
	err   error // of printing
}

func (d *diagnoses) say(f doctor.Diagnosis) {
	d.fatal = d.fatal || f.Severity == doctor.Fatal
	word := map[doctor.Severity]string{doctor.Fine: "ok", doctor.Lacking: "lacks", doctor.Fatal: "FAILS"}[f.Severity]
	text := termtext.Line(strings.ReplaceAll(f.Text, "\n", " "))
	if _, err := fmt.Fprintf(d.stdout, "%-6s %-22s %s\n", word, f.What, text); err != nil {
		d.err = err
	}
}

func (d *diagnoses) end() error {
	if d.err != nil {
		return d.err
	}
	if d.fatal {
		return &doneError{exitFailed}
	}
	return nil
}
