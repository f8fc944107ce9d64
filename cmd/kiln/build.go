package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/report"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/values"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/spf13/cobra"
)

func (a *app) buildCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build [flags] PATH | URL | -",
		Short: "Build an image from a Dockerfile",
		Args:  exactArgs("a PATH, URL or - (the build context)"),
		RunE: a.asRoot(func(cmd *cobra.Command, args []string) error {
			o, err := f.options(args[0])
			if err != nil {
				return err
			}
			if slices.ContainsFunc(o.Export.Outputs, values.OnStdout) && termtext.IsTerminal(os.Stdout) {
				return usageErrorf("--output: an archive is not written to a terminal: give it a dest=, or redirect standard output")
			}
			proxies, err := auth.Proxies()
			if err != nil { // docker goes on as well
				a.complain("warning: RUN gets no proxies: " + err.Error())
			}
			values.AddProxies(o.Target.Args, proxies)
			o.Source.Stdin, o.Debug = cmd.InOrStdin(), a.debug
			return a.withRoot(cmd.Context(), func(k *kiln) error {
				return a.build(cmd.Context(), k.builder, o, f.progress.mode(), f.call.json)
			})
		}),
	}
	flags := cmd.Flags()
	f.add(flags)
	values.AddUnsupported(flags)
	return cmd
}

// build runs a build and prints its result; a call other than build is printed as JSON if asJSON is set.
func (a *app) build(ctx context.Context, b *build.Builder, o build.Options, mode string, asJSON bool) error {
	result := &build.Result{}
	shown, _ := progressMode(mode)
	quiet := shown == "quiet"
	err := a.withProgress(ctx, mode, func(ctx context.Context, s *events.Stream) (err error) {
		result, err = b.Build(ctx, o, s)
		return err
	})
	if o.Call == build.CallCheck {
		return a.printCheck(ctx, result, err, asJSON)
	}
	if !quiet {
		report.Warnings(ctx, a.stderr, result, a.debug)
		report.Verified(a.stderr, result)
	}
	if err != nil {
		return failedBuild(err, result)
	}
	if o.Call != build.CallBuild {
		return report.Description(a.stdout, result, asJSON)
	}
	if !quiet {
		return nil
	}
	if result.ImageID == "" || slices.ContainsFunc(o.Export.Outputs, values.OnStdout) {
		return nil
	}
	_, err = fmt.Fprintln(a.stdout, result.ImageID)
	return err
}

// failedBuild returns err with the Dockerfile of a build, which errors quote.
func failedBuild(err error, r *build.Result) *buildError {
	return &buildError{err: err, dockerfile: report.Dockerfile{Name: r.DockerfileName, Text: r.Dockerfile}}
}
