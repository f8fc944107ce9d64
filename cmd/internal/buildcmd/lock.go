package buildcmd

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/build/sources"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/help"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/lockfile"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/suggest"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/spf13/cobra"
)

// lockFlags are the flags of lock.
type lockFlags struct {
	source sourceFlags
	target targetFlags
	client clientFlags
	shown  string
	update bool
	keep   bool
}

// Lock returns the command of that name.
func Lock(a *app.App) *cobra.Command {
	var f lockFlags
	cmd := &cobra.Command{
		Use:   "lock [flags] [CONTEXT] [NAME...]",
		Short: "Lock base images, URLs and git refs to their digests",
		Long: `Write the digest of every base image, URL and git ref of a Dockerfile to the file of its name with .lock behind it, a sorted text for
review. kiln build --locked builds with exactly these. The digest of an image is that of its index, so it stands for all platforms.

All stages count, or with --target those that it needs, with these build arguments, contexts and platforms; kiln build --locked needs the
same. A source that is in the file stays as it is, one that is missing is added, and one that is no longer used is removed. --update looks
up all of them again, or with NAMEs those alone; a NAME is as in the Dockerfile or in the file. Each change is a line on standard output.

CONTEXT is a directory, by default the working directory; with --update it has to begin with / or a point. Registries are asked even about
images that are here; an image that is in no registry is locked as it is here, with a warning.`,
		Example: `  kiln lock
  kiln lock --platform linux/amd64,linux/arm64 -f docker/Dockerfile .
  kiln lock --update
  kiln lock --update debian:bookworm
  kiln build --locked -t app .`,
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) error { return f.run(a, cmd, args) }),
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.update, "update", false, "look up the sources of these NAMEs again, or all")
	flags.BoolVar(&f.keep, "keep-unused", false, "keep what these flags do not use, as for other targets of the Dockerfile")
	help.Group(flags, "Lock file")
	f.source.addNames(flags)
	flags.Lookup("file").Usage = "`FILE` path of the Dockerfile (default CONTEXT/Dockerfile)"
	help.Group(flags, "Source")
	f.target.addScope(flags)
	flags.Lookup("target").Usage = "`STAGE` lock what this stage needs (default what all stages need)"
	help.Group(flags, "Target")
	f.client.addKeys(flags)
	help.Group(flags, "Secrets")
	a.RegistryFlags(flags)
	help.Group(flags, "Registries")
	app.ProgressFlag(flags, &f.shown)
	help.Group(flags, "Progress")
	return cmd
}

// arguments divides the arguments into the context and the names of sources.
func (f *lockFlags) arguments(args []string) (context string, given names, err error) {
	context = "."
	hasContext := false
	for _, arg := range args {
		isPath := strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".")
		switch {
		case f.update && !isPath:
			given = append(given, arg)
		case hasContext:
			if !f.update {
				return "", nil, app.UsageErrorf("there are several arguments: CONTEXT is one directory, and NAMEs are for --update")
			}
			return "", nil, app.UsageErrorf("there are several directories: %s and %s", context, arg)
		default:
			context, hasContext = arg, true
		}
	}
	return context, given, nil
}

// options returns what is to be locked.
func (f *lockFlags) options(dir string, given names) (o build.Options, err error) {
	isDir, err := contexts.Check(dir)
	if err == nil && (!isDir || f.source.file == "-" || remoteurl.IsHTTP(f.source.file)) {
		err = fmt.Errorf("a lock file lies beside a Dockerfile that is a file of this machine: lock it where it is kept")
	}
	if err != nil {
		return o, app.UsageErrorf("%w", err)
	}
	if o.Source, err = f.source.read(dir); err != nil {
		return o, err
	}
	if o.Pins, err = f.source.pins(); err != nil {
		return o, err
	}
	if o.Target, err = f.target.read(); err != nil {
		return o, err
	}
	if o.Client, err = f.client.read(); err != nil {
		return o, err
	}
	o.Call = build.CallLock
	if f.update {
		o.Pins.Update = given.want
	}
	return o, o.Absolute()
}

func (f *lockFlags) run(a *app.App, cmd *cobra.Command, args []string) error {
	dir, given, err := f.arguments(args)
	if err != nil {
		return err
	}
	o, err := f.options(dir, given)
	if err != nil {
		return err
	}
	o.Debug = a.Debug
	return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
		result := &build.Result{}
		err := a.WithProgress(cmd.Context(), f.shown, func(ctx context.Context, s *events.Stream) (err error) {
			result, err = k.Builder.Build(ctx, o, s)
			return err
		})
		if err != nil {
			report.Warnings(cmd.Context(), a.Stderr, result, a.Debug)
			return app.FailedBuild(err, result)
		}
		if f.keep {
			result.Lock.After = lockfile.Kept(result.Lock.Before, result.Lock.After)
		}
		if err := given.check(result.Lock); err != nil {
			return err
		}
		return f.write(a.Stdout, result.Lock)
	})
}

// write writes the lock file, unless it is there as it is, and prints what has changed.
func (f *lockFlags) write(to io.Writer, l *sources.Relocked) error {
	changes := lockfile.Compare(l.Before, l.After)
	text := l.After.Encode()
	if l.Before == nil || string(l.Before.Encode()) != string(text) {
		err := exporter.WriteFile(l.Path, func(w io.Writer) error {
			_, err := w.Write(text)
			return err
		})
		if err != nil {
			return fmt.Errorf("write the lock file: %w", err)
		}
	}
	if len(changes) == 0 {
		_, err := fmt.Fprintf(to, "%s is up to date\n", termtext.Line(l.Name))
		return err
	}
	for _, c := range changes {
		if _, err := fmt.Fprintln(to, termtext.Line(c.String())); err != nil {
			return err
		}
	}
	return nil
}

// names are those of sources that a user has given.
type names []string

// want reports whether an entry has one of the names; every entry is wanted if there are none.
func (n names) want(e lockfile.Entry) bool { return len(n) == 0 || slices.ContainsFunc(n, e.Called) }

// check returns an error if a name is that of no source, now or before.
func (n names) check(l *sources.Relocked) error {
	all := append(l.After.Entries(), l.Before.Entries()...)
	for _, name := range n {
		if slices.ContainsFunc(all, func(e lockfile.Entry) bool { return e.Called(name) }) {
			continue
		}
		var known []string
		for _, e := range l.After.Entries() {
			known = append(known, append(e.Written, e.Name)...)
		}
		return app.UsageErrorf("--update %s: the Dockerfile has no such source%s", name, suggest.Hint(name, known...))
	}
	return nil
}
