package main

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/report"
)

// call is --call NAME[,format=text|json].
type call struct {
	name string
	json bool
}

func parseCall(value string) (call, error) {
	name, options, _ := strings.Cut(value, ",")
	c := call{name: name}
	if !slices.Contains([]string{"", "build", "check", "outline", "targets"}, name) {
		return c, usageErrorf("--call %q: use build, check, outline or targets", name)
	}
	switch options {
	case "", "format=text":
	case "format=json":
		c.json = true
	default:
		return c, usageErrorf("--call %q: the only option is format=text or format=json", value)
	}
	return c, nil
}

// printCheck prints what a check found, and fails if that is more than advice, or if the check failed with err.
func (a *app) printCheck(ctx context.Context, r *build.Result, err error, asJSON bool) error {
	printErr := report.Check(ctx, a.stdout, r, err, asJSON)
	var failed error
	switch {
	case asJSON && printErr != nil:
		return printErr
	case err != nil:
		failed = failedBuild(err, r)
	case slices.ContainsFunc(r.Warnings, func(w build.Warning) bool { return !w.Advice }):
		failed = errFound
	}
	return cmp.Or(failed, printErr)
}
