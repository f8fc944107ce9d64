// Package report formats the results of commands for people, and those of --call for programs: errors with the lines of the Dockerfile,
// warnings, outlines, why steps ran, what takes space. It decides nothing, and has no exit statuses.
package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/progress"
)

// Count returns "1 thing", "2 things".
func Count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// Size returns a number of bytes in decimal units, as "1.23MB".
func Size(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// shorten cuts a step's name, which may be a script, to what fits into a message.
func shorten(name string) string {
	const most = 100
	if r := []rune(name); len(r) > most {
		return string(r[:most]) + "…"
	}
	return name
}

// Verified prints which cached steps of a build made something else when they ran again.
func Verified(to io.Writer, r *build.Result) {
	if len(r.Verified) == 0 {
		return
	}
	var b strings.Builder
	differ, what := 0, "cached step"
	if r.Twice {
		what = "step"
	}
	for _, v := range r.Verified {
		differences := progress.Differences(v.Again)
		if len(differences) == 0 {
			continue
		}
		differ++
		fmt.Fprintf(&b, "  %s\n", termtext.Line(shorten(v.Step)))
		for _, d := range differences {
			fmt.Fprintf(&b, "    %s\n", termtext.Line(d))
		}
	}
	_, _ = fmt.Fprintf(to, "\n%s ran again, %d made something else\n%s", Count(len(r.Verified), what), differ, b.String())
}
