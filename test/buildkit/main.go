// Program buildkit runs BuildKit's integration tests, unmodified, from the Go module cache against kilnd, which takes the place of
// buildkitd. It makes what they need: images that stand in for those of docker.io, buildctl, the front end as an image, and the test
// binaries.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: run dockerfile builtin|client|gateway [FLAG...]
       run client [FLAG...]
       run prepare

The first form runs the tests of BuildKit's Dockerfile front end: that of the server, that of the test process, or that of an image. The
second runs the tests of its client. The third only makes what both need, and prints where it is.

Tests of passes/*.txt must pass. What is made once is in the directory $KILN_SUITES, ~/.cache/kiln-suites by default, and what a run needs
in $TMPDIR. Runs at the same time do not disturb each other.

`

// request is what the command line asks for.
type request struct {
	suite   suite
	kilnd   string
	against string
	filter  *regexp.Regexp
	want    string
	timeout time.Duration
	update  bool
	verbose bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	var wrong usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.As(err, &wrong):
		fmt.Fprintf(os.Stderr, "%s\nrun --help explains what there is\n", err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// usageError is a mistake in the command line.
type usageError string

func (e usageError) Error() string { return string(e) }

func run(ctx context.Context, args []string) error {
	words := args
	if i := slices.IndexFunc(args, func(s string) bool { return strings.HasPrefix(s, "-") }); i >= 0 {
		words = args[:i]
	}
	var r request
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.StringVar(&r.kilnd, "kilnd", "", "the kilnd to test; by default it is built from this checkout")
	flags.StringVar(&r.against, "against", "kilnd",
		"kilnd, buildkitd (the real one), or nothing: a server that reports success and does nothing")
	filter := flags.String("run", "", "only tests whose names match this regular expression, such as '^TestNoCache$'")
	flags.StringVar(&r.want, "want", "", "list also which tests of this file did not pass")
	flags.DurationVar(&r.timeout, "timeout", time.Hour, "the time after which the tests are killed")
	flags.BoolVar(&r.update, "update", false,
		"add the tests that pass to the list of those that must; with -against nothing, to that of hollow ones")
	flags.BoolVar(&r.verbose, "v", false, "print what tests print")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args[len(words):]); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return usageError(fmt.Sprintf("%q is not expected behind flags", flags.Arg(0)))
	}
	c, err := openCache()
	if err != nil {
		return err
	}
	if len(words) == 1 && words[0] == "prepare" {
		return prepare(ctx, c)
	}
	if r.suite, err = findSuite(words); err != nil {
		return err
	}
	if !slices.Contains([]string{"kilnd", "buildkitd", "nothing"}, r.against) {
		return usageError(fmt.Sprintf("-against %s: it is kilnd, buildkitd or nothing", r.against))
	}
	if strings.Contains(*filter, "/") {
		return usageError("-run: the expression is for the names of tests, without the slash of subtests")
	}
	if r.filter, err = regexp.Compile(*filter); err != nil {
		return usageError("-run: " + err.Error())
	}
	if r.against == "buildkitd" && r.update {
		return usageError("-update: the lists are of what kiln passes")
	}
	return r.run(ctx, c)
}

// prepare makes everything, and says where it is.
func prepare(ctx context.Context, c cache) error {
	for _, s := range suites {
		if _, err := c.binary(ctx, s.binary); err != nil {
			return err
		}
	}
	mirror, err := c.mirror(ctx)
	if err != nil {
		return err
	}
	frontend, err := c.frontend(ctx)
	if err != nil {
		return err
	}
	buildctl, err := c.binary(ctx, "buildctl")
	if err != nil {
		return err
	}
	fmt.Printf("test binaries  %s\nmirror         %s\nfront end      %s\n", filepath.Dir(buildctl), mirror, frontend)
	return nil
}
