package buildcmd

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/internal/suggest"
)

// call is --call NAME[,format=text|json].
type call struct {
	name string
	json bool
}

func parseCall(value string) (call, error) {
	name, options, _ := strings.Cut(value, ",")
	c := call{name: name}
	if name != "" && !slices.Contains(values.Calls, name) {
		return c, app.UsageErrorf("--call %q: use build, check, outline or targets%s", name, suggest.Hint(name, values.Calls...))
	}
	switch options {
	case "", "format=text":
	case "format=json":
		c.json = true
	default:
		return c, app.UsageErrorf("--call %q: the only option is format=text or format=json", value)
	}
	return c, nil
}

// printCheck prints what a check found, and fails if that is more than advice, or if the check failed with err.
func printCheck(ctx context.Context, to io.Writer, r *build.Result, err error, asJSON bool) error {
	printErr := report.Check(ctx, to, r, err, asJSON)
	var failed error
	switch {
	case asJSON && printErr != nil:
		return printErr
	case err != nil:
		failed = app.FailedBuild(err, r)
	case slices.ContainsFunc(r.Warnings, func(w build.Warning) bool { return !w.Advice }):
		failed = app.ErrFound
	}
	return cmp.Or(failed, printErr)
}
