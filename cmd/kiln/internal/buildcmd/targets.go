package buildcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/build"
	"github.com/kilnbuild/kiln/build/set"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/app"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/values"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/progress"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/spf13/cobra"
)

// target is a build that a compose file describes: what the command line of kiln build would say.
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
	t.flags.call.call = "build"
	t.flags.run.limits = build.Limits{}
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

// buildTargets builds targets together, and writes their results to metadataFile unless that is "".
func buildTargets(a *app.App, cmd *cobra.Command, targets []target, mode, metadataFile string) error {
	proxies, err := auth.Proxies()
	if err != nil {
		a.Complain("warning: RUN gets no proxies: " + err.Error())
	}
	if metadataFile != "" {
		if err := rootdir.Absolute(&metadataFile); err != nil {
			return err
		}
	}
	var members []set.Member
	failures := map[string]*progress.Failures{}
	for _, t := range targets {
		o, err := t.options(proxies)
		if err != nil {
			return &input.Error{Err: fmt.Errorf("target %s: %w", t.name, err)}
		}
		o.Debug = a.Debug
		failures[t.name] = &progress.Failures{}
		members = append(members, set.Member{Name: t.name, Options: o, Needs: t.needs, Linked: t.linked, Sinks: []events.Sink{failures[t.name]}})
	}
	return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
		var results map[string]*build.Result
		err := a.WithProgress(cmd.Context(), mode, func(ctx context.Context, s *events.Stream) (err error) {
			results, err = set.Build(ctx, k.Builder, k.Root, members, s)
			return err
		})
		if failed, ok := errors.AsType[*set.MemberError](err); ok {
			return &app.ProgressError{
				Err:      app.FailedBuild(failed, failed.Result),
				Failures: failures[failed.Member],
			}
		}
		if err != nil || metadataFile == "" {
			return err
		}
		return writeMetadata(metadataFile, results)
	})
}

// writeMetadata writes the metadata of results, by target.
func writeMetadata(path string, results map[string]*build.Result) error {
	all := map[string]json.RawMessage{}
	for name, r := range results {
		data, err := r.Metadata()
		if err != nil {
			return err
		}
		all[name] = data
	}
	err := exporter.WriteFile(path, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(all)
	})
	if err != nil {
		return fmt.Errorf("write the metadata: %w", err)
	}
	return nil
}
