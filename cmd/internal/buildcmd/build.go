// Package buildcmd has the commands that build: their flags, what files say in place of flags, and what is printed of a result. It does
// not know how anything is built.
package buildcmd

import (
	"context"
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/spf13/cobra"
)

// Build returns the command of that name.
func Build(a *app.App) *cobra.Command {
	var f buildFlags
	var debug debugFlags
	cmd := &cobra.Command{
		Use:   "build [flags] PATH | URL | -",
		Short: "Build an image from a Dockerfile",
		Long: `Build an image from a Dockerfile and a build context: a directory, the URL of a git repository or an archive, or - for an archive on
standard input. The image goes into kiln's own store unless --output or --push says otherwise.`,
		Example: `  kiln build -t app .
  kiln build -t registry.example/app:v1 --push .
  kiln build -f docker/Dockerfile --target test --build-arg VERSION=1.2 .
  kiln build --secret id=token,src=token.txt -t app .
  kiln build --platform linux/amd64,linux/arm64 -o type=oci,dest=app.tar .
  kiln build -o out https://git.example/repo.git#main:sub`,
		Args: func(cmd *cobra.Command, args []string) error {
			err := app.ExactArgs("a PATH, URL or - (the build context)")(cmd, args)
			if err != nil && len(args) == 0 {
				return app.UsageErrorf("%w: %s . builds the current directory", err, cmd.CommandPath())
			}
			return err
		},
		RunE: f.handingOver(a, a.AsRoot(func(cmd *cobra.Command, args []string) error {
			o, err := f.options(args[0])
			if err != nil {
				return err
			}
			if o.OnFailure, err = debug.handler(cmd, a, args[0] == "-" || f.source.file == "-"); err != nil {
				return err
			}
			proxies, err := auth.Proxies()
			if err != nil { // docker goes on as well
				a.Complain("warning: RUN gets no proxies: " + err.Error())
			}
			values.AddProxies(o.Target.Args, proxies)
			o.Source.Stdin, o.Debug = cmd.InOrStdin(), a.Debug
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				return runBuild(cmd.Context(), a, k.Builder, o, f.progress.mode(), f.call.json)
			})
		})),
	}
	flags := cmd.Flags()
	f.add(flags)
	a.RegistryFlags(flags)
	help.Group(flags, "Registries")
	debug.add(flags)
	values.AddUnsupported(flags)
	return cmd
}

// handingOver returns run in a form that has kilnd do it if the frontend of the Dockerfile is, or may be, an image that is allowed.
func (f *buildFlags) handingOver(a *app.App, run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		mayNeed := func() bool {
			s, err := f.source.read(args[0])
			if err != nil {
				return false // as the build will say
			}
			set, err := values.BuildArgs(f.target.args)
			return err == nil && s.MayBeForeign(set)
		}
		if err := a.HandOver(slices.Contains(f.client.allow, values.Frontend), mayNeed); err != nil {
			return err
		}
		return run(cmd, args)
	}
}

// runBuild runs a build and prints its result; a call other than build is printed as JSON if asJSON is set.
func runBuild(ctx context.Context, a *app.App, b *build.Builder, o build.Options, mode string, asJSON bool) error {
	result := &build.Result{}
	shown, _ := app.ProgressMode(mode)
	quiet := shown == "quiet"
	err := a.WithProgress(ctx, mode, func(ctx context.Context, s *events.Stream) (err error) {
		result, err = b.Build(ctx, o, s)
		return err
	})
	if o.Call == build.CallCheck {
		return printCheck(ctx, a.Stdout, result, err, asJSON)
	}
	if !quiet {
		report.Warnings(ctx, a.Stderr, result, a.Debug)
		report.Verified(a.Stderr, result)
	}
	if err != nil {
		return app.FailedBuild(err, result)
	}
	if o.Call != build.CallBuild {
		return report.Description(a.Stdout, result, asJSON)
	}
	if !quiet {
		return nil
	}
	if result.ImageID == "" || slices.ContainsFunc(o.Export.Outputs, values.OnStdout) {
		return nil
	}
	_, err = fmt.Fprintln(a.Stdout, result.ImageID)
	return err
}
