package report

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/history"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/progress"
)

// Explanation describes a build of the history: which of its steps ran, and why.
func Explanation(p *history.Past, now time.Time) []byte {
	var out bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintln(&out, termtext.Line(fmt.Sprintf(format, args...))) }
	end := ""
	switch {
	case p.Done.Canceled:
		end = ", canceled"
	case p.Done.Error != "":
		end = ", failed"
	}
	ago := strings.ToLower(units.HumanDuration(now.Sub(p.Begun)))
	line("build %s of %s, %s ago, took %.1fs%s", p.ID, p.Build.Context, ago, p.Took.Seconds(), end)
	failed := func(step history.Step) bool { return step.Finished.Error != "" }
	if p.Done.Error != "" && !slices.ContainsFunc(p.Steps, failed) {
		line("%s", p.Done.Error)
	}
	for _, step := range p.Steps {
		if step.Op == "" || step.Idle() {
			continue
		}
		line("%-9s %s", outcome(step), shorten(step.Name()))
		if step.Missed != nil {
			for _, reason := range progress.Reasons(*step.Missed) {
				line("          %s", reason)
			}
		}
		if step.Files != nil {
			for _, reason := range progress.FileReasons(*step.Files) {
				line("          %s", reason)
			}
		}
		for _, m := range step.Finished.Materials {
			line("          from %s at %s", m.URI, m.Digest)
		}
		if failed(step) {
			line("          %s", step.Finished.Error)
		}
		if step.LogFile != "" {
			line("          output: %s", rootdir.Shown(step.LogFile))
		}
	}
	if p.Lost > 0 {
		line("and %s that the history had no room for", Count(p.Lost, "event"))
	}
	return out.Bytes()
}

// outcome says in a word how a step ended, or how long it took if it ran to its end.
func outcome(step history.Step) string {
	switch {
	case step.Finished.Canceled:
		return "canceled"
	case step.Finished.Error != "":
		return "failed"
	case step.Cached:
		return "cached"
	}
	return fmt.Sprintf("%.1fs", step.Took.Seconds())
}
