package buildcmd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/confine"
	"github.com/kilnbuild/kiln/build/set"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/progress"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/spf13/cobra"
)

// target is a build that a file describes: what the command line of kiln build would say.
type target struct {
	name    string
	context string
	flags   buildFlags
	// inline is the text of the Dockerfile; nil for one that is a file.
	inline *string
	// needs are named contexts that are other targets, and linked says that the target is only built for those.
	needs  map[string]string
	linked bool
}

// setDockerfile sets the path of the Dockerfile, which is relative to a context that is a directory, or its text.
func (t *target) setDockerfile(path string, inline *string) {
	if inline != nil {
		t.inline, t.flags.source.file = inline, "-"
		return
	}
	local, ok := strings.CutPrefix(path, "cwd://")
	isRemote := strings.Contains(t.context, "://") || strings.HasPrefix(t.context, "git@")
	if !ok && !isRemote && !filepath.IsAbs(path) && !strings.Contains(path, "://") {
		local = filepath.Join(t.context, path)
	}
	t.flags.source.file = local
}

// options returns what is to be built.
func (t *target) options(proxies map[string]string) (build.Options, error) {
	name, format, hasFormat := strings.Cut(t.flags.call.call, ",")
	switch name {
	case "":
		name = "build"
	case "lint": // what buildx calls it in definitions
		name = "check"
	}
	if hasFormat {
		name += "," + format
	}
	t.flags.call.call = name
	t.flags.run.limits = confine.Limits{}
	o, err := t.flags.options(t.context)
	if err != nil {
		return o, err
	}
	if slices.ContainsFunc(o.Export.Outputs, values.OnStdout) {
		return o, errors.New("an output of one of several targets cannot go to standard output: give it a dest=")
	}
	if t.inline != nil {
		o.Source.Stdin = strings.NewReader(*t.inline)
	}
	values.AddProxies(o.Target.Args, proxies)
	return o, nil
}

// setFlags are the flags of commands that build targets together.
type setFlags struct {
	progress     progressFlags
	metadataFile string
	repro        reproducibleFlags
	// sign are files with keys for all targets that are pushed.
	sign []string
}

// request is a set of targets as members of a set of builds.
type request struct {
	members  []set.Member
	asked    []asked
	failures map[string]*progress.Failures // by member
}

// asked is a target that is not there for others alone.
type asked struct {
	name, member string
	call         build.Call
	json         bool
}

// newRequest returns the builds of targets. A target of which only a description is asked for, and which others have as a context, is
// built for those as well.
func newRequest(targets []target, flags *setFlags, proxies map[string]string, debug bool) (*request, error) {
	r := &request{failures: map[string]*progress.Failures{}}
	needed := map[string]bool{}
	for _, t := range targets {
		for _, name := range t.needs {
			needed[name] = true
		}
	}
	signers, err := signing.ReadPrivateKeys(flags.sign)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	add := func(t *target, member string) error {
		t.flags.progress.explain, t.flags.repro = flags.progress.explain, flags.repro
		t.flags.export.signers = signers
		o, err := t.options(proxies)
		if err == nil && flags.metadataFile != "" {
			o.Export.MetadataProvenance, err = values.MetadataProvenance()
		}
		if err != nil {
			return &input.Error{Err: fmt.Errorf("target %s: %w", t.name, err)}
		}
		o.Debug = debug
		r.failures[member] = &progress.Failures{}
		r.members = append(r.members, set.Member{
			Name: member, Options: o, Needs: t.needs, Linked: t.linked, Sinks: []events.Sink{r.failures[member]},
		})
		if !t.linked {
			r.asked = append(r.asked, asked{t.name, member, o.Call, t.flags.call.json})
		}
		return nil
	}
	for _, t := range targets {
		name, _, _ := strings.Cut(t.flags.call.call, ",")
		member := t.name
		if image := t; name != "" && name != "build" && needed[t.name] {
			image.flags.call.call, image.linked, image.flags.export = "", true, exportFlags{}
			if err := add(&image, member); err != nil {
				return nil, err
			}
			if member += " (" + name + ")"; t.linked {
				continue
			}
		}
		if err := add(&t, member); err != nil {
			return nil, err
		}
	}
	if len(flags.sign) > 0 && !slices.ContainsFunc(r.members, func(m set.Member) bool { return len(m.Options.Export.Sign) > 0 }) {
		return nil, app.UsageErrorf("--sign: what is pushed is signed, and nothing is: give --push")
	}
	return r, nil
}

// buildTargets builds targets together, and prints what was asked for.
func buildTargets(a *app.App, cmd *cobra.Command, targets []target, flags setFlags) error {
	proxies, err := auth.Proxies()
	if err != nil {
		a.Complain("warning: RUN gets no proxies: " + err.Error())
	}
	if flags.metadataFile != "" {
		if err := values.CheckFile(flags.metadataFile); err != nil {
			return app.UsageErrorf("--metadata-file: %w", err)
		}
		if err := rootdir.Absolute(&flags.metadataFile); err != nil {
			return err
		}
	}
	r, err := newRequest(targets, &flags, proxies, a.Debug)
	if err != nil {
		return err
	}
	return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
		var results map[string]*build.Result
		err := a.WithProgress(cmd.Context(), flags.progress.mode(), func(ctx context.Context, s *events.Stream) (err error) {
			results, err = set.Build(ctx, k.Builder, k.Root, r.members, s)
			return err
		})
		if failed, ok := errors.AsType[*set.MemberError](err); ok {
			return &app.ProgressError{
				Err:      app.FailedBuild(failed, failed.Result),
				Failures: r.failures[failed.Member],
			}
		}
		if err != nil {
			return err
		}
		if flags.metadataFile != "" {
			if err := r.writeMetadata(flags.metadataFile, results); err != nil {
				return err
			}
		}
		return r.print(cmd.Context(), a, results, flags.progress.mode())
	})
}

// print prints the results of targets: of those that were built the ID of the image, which is all that -q prints.
func (r *request) print(ctx context.Context, a *app.App, results map[string]*build.Result, mode string) error {
	shown, _ := app.ProgressMode(mode)
	var failed error
	described := map[string]json.RawMessage{}
	for _, t := range r.asked {
		result := results[t.member]
		switch {
		case t.call != build.CallBuild && t.json:
			var out bytes.Buffer
			failed = cmp.Or(describe(ctx, &out, t, result), failed)
			described[t.name] = out.Bytes()
		case t.call != build.CallBuild:
			if len(r.asked) > 1 {
				if _, err := fmt.Fprintf(a.Stdout, "%s:\n", t.name); err != nil {
					return err
				}
			}
			failed = cmp.Or(describe(ctx, a.Stdout, t, result), failed)
		case shown == "quiet":
			if result.ImageID == "" {
				continue
			}
			if _, err := fmt.Fprintf(a.Stdout, "%s %s\n", t.name, result.ImageID); err != nil {
				return err
			}
		default:
			report.Warnings(ctx, a.Stderr, result, a.Debug)
		}
	}
	if len(described) > 0 {
		return cmp.Or(writeJSON(a.Stdout, described), failed)
	}
	if shown != "quiet" && shown != "none" && shown != "rawjson" {
		r.summarize(a.Stderr, results)
	}
	return failed
}

// summarize prints a line for each image that was built.
func (r *request) summarize(to io.Writer, results map[string]*build.Result) {
	for _, t := range r.asked {
		if result := results[t.member]; t.call == build.CallBuild && result.ImageID != "" {
			_, _ = fmt.Fprintln(to, termtext.Line(strings.Join(append([]string{t.name, result.ImageID}, result.Names...), " ")))
		}
	}
}

// describe prints what a call other than build returned.
func describe(ctx context.Context, to io.Writer, t asked, result *build.Result) error {
	if t.call == build.CallCheck {
		return printCheck(ctx, to, result, nil, t.json)
	}
	return report.Description(to, result, t.json)
}

func writeJSON(to io.Writer, v any) error {
	e := json.NewEncoder(to)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// writeMetadata writes the metadata of the targets that were asked for.
func (r *request) writeMetadata(path string, results map[string]*build.Result) error {
	all := map[string]json.RawMessage{}
	for _, t := range r.asked {
		data, err := results[t.member].Metadata()
		if err != nil {
			return err
		}
		all[t.name] = data
	}
	if err := exporter.WriteFile(path, func(w io.Writer) error { return writeJSON(w, all) }); err != nil {
		return fmt.Errorf("write the metadata: %w", err)
	}
	return nil
}
