package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/doctor"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/spf13/cobra"
)

func doctorCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check what this host supports",
		Long: `Check whether this host has what builds need, for this user, and say how to fix the rest. Each line begins with "ok"; "lacks" for
what only some builds need; or "FAILS" for what every build needs. The exit status is 0 if builds can run, otherwise 1.`,
		Example: "  kiln doctor",
		Args:    app.ExactArgs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !userns.Needed() {
				return examine(a, cmd)
			}
			err := a.AsRoot(nil)(cmd, args)
			if e, ok := err.(*app.InternalError); ok {
				// There is no user namespace, so nothing else can be tried.
				d := &diagnoses{out: a.Stdout}
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

func examine(a *app.App, cmd *cobra.Command) error {
	d := &diagnoses{out: a.Stdout}
	_, cfgErr := config.Load()
	for _, f := range doctor.Surroundings(cfgErr) {
		d.say(f)
	}
	if cfgErr == nil {
		err := a.WithRoot(cmd.Context(), func(k *app.Kiln) error { return doctor.Examine(cmd.Context(), k.Root, k.Config, d.say) })
		if e, ok := err.(*app.InternalError); ok {
			d.say(doctor.Diagnosis{What: "root directory", Text: e.Error(), Severity: doctor.Fatal})
		} else if err != nil {
			return err
		}
	}
	return d.end()
}

// diagnoses prints what doctor found.
type diagnoses struct {
	out   io.Writer
	fatal bool
	err   error // of printing
}

func (d *diagnoses) say(f doctor.Diagnosis) {
	d.fatal = d.fatal || f.Severity == doctor.Fatal
	word := map[doctor.Severity]string{doctor.Fine: "ok", doctor.Lacking: "lacks", doctor.Fatal: "FAILS"}[f.Severity]
	text := termtext.Line(strings.ReplaceAll(f.Text, "\n", " "))
	if _, err := fmt.Fprintf(d.out, "%-6s %-22s %s\n", word, f.What, text); err != nil {
		d.err = err
	}
}

func (d *diagnoses) end() error {
	if d.err != nil {
		return d.err
	}
	if d.fatal {
		return &app.DoneError{Status: app.ExitFailed}
	}
	return nil
}
