// Package cachecmd has the commands for caches that travel, and for cache mounts. It does not know how a build uses one.
package cachecmd

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/build/caching"
	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/solver"
)

// Commands returns the commands of kiln cache.
func Commands(a *app.App) []*cobra.Command {
	return []*cobra.Command{list(a), inspect(a), prune(a), mountsGroup(a)}
}

const about = "CACHE is what --cache-from of kiln build takes: a NAME in a registry, type=registry,ref=NAME, type=local,src=DIRECTORY, " +
	"type=s3,bucket=NAME,region=REGION, type=azblob,account_url=URL or type=gha."

// open opens the cache that a user has named.
func open(a *app.App, value string) (*caching.Place, error) {
	specs, err := values.Caches([]string{value}, false)
	if err != nil {
		return nil, err
	}
	if len(specs) == 0 {
		return nil, app.UsageErrorf("the CACHE is empty")
	}
	if specs[0].Attrs["verify"] != "" {
		return nil, app.UsageErrorf("CACHE %q: verify= is of builds: look at signatures with kiln cache ls --format json", value)
	}
	for _, path := range specs[0].Paths() {
		if err := rootdir.Absolute(path); err != nil {
			return nil, err
		}
	}
	cfg, err := a.Configuration()
	if err != nil {
		return nil, &app.InternalError{Err: err}
	}
	return caching.OpenPlace(specs[0], registry.New(cfg.Registries))
}

// with calls f with what a cache holds.
func with(ctx context.Context, a *app.App, value string, f func(p *pack.Pack) error) error {
	place, err := open(a, value)
	if err != nil {
		return err
	}
	defer place.Close()
	p, err := place.Read(ctx)
	if err != nil {
		return err
	}
	return f(p)
}

// step is a record as it is listed.
type step struct {
	Key    string    `json:"key"`
	Name   string    `json:"name"`
	Used   time.Time `json:"used"`
	Size   int64     `json:"size"`
	Layers []string  `json:"layers"`
	// Known says that the cache has only what the step made, and neither its name nor what was done.
	Known bool `json:"known,omitempty"`
	// SignedBy are the keys that are said to have signed it.
	SignedBy []string `json:"signedBy,omitempty"`
}

// steps returns the records, the one that was used last first. A layer counts for each step that has it.
func steps(p *pack.Pack) []step {
	var all []step
	for _, key := range slices.SortedFunc(maps.Keys(p.Records), func(a, b solver.Key) int {
		return cmp.Or(p.Records[b].Used.Compare(p.Records[a].Used), slices.Compare(a[:], b[:]))
	}) {
		r := p.Records[key]
		s := step{Key: key.String(), Name: r.Name, Used: r.Used.UTC(), Layers: []string{}, Known: r.Known}
		for _, m := range r.Outputs {
			s.Layers = append(s.Layers, m.ID)
			for _, d := range p.Layers[layer.ID(m.ID)].Descriptors() {
				s.Size += d.Size
			}
		}
		for _, sig := range r.Signatures {
			s.SignedBy = append(s.SignedBy, sig.Key)
		}
		all = append(all, s)
	}
	return all
}

// checkFormat returns a usage error for a value of --format that is none.
func checkFormat(format string) error {
	if format != "table" && format != "json" {
		return app.UsageErrorf("--format %q: it is table or json", format)
	}
	return nil
}

// printJSON prints each row as an object in a line.
func printJSON[T any](w io.Writer, rows []T) error {
	out := json.NewEncoder(termtext.JSONWriter(w))
	for _, r := range rows {
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

func list(a *app.App) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "ls [flags] CACHE",
		Short: "List the steps that a cache has",
		Long: "List the steps that a cache has, the one that a build used last first. " +
			"SIZE is that of the step's layers as they are in the cache. The STEP is - where the cache has only what it made: see mode=min.\n\n" +
			about,
		Example: `  kiln cache ls registry.example/app:cache
  kiln cache ls type=local,src=cache --format json`,
		Args: app.ExactArgs("a CACHE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFormat(format); err != nil {
				return err
			}
			return with(cmd.Context(), a, args[0], func(p *pack.Pack) error {
				if format == "json" {
					return printJSON(a.Stdout, steps(p))
				}
				out := tabwriter.NewWriter(a.Stdout, 0, 8, 3, ' ', 0)
				fmt.Fprintln(out, "KEY\tUSED\tSIZE\tSTEP")
				for _, s := range steps(p) {
					used := units.HumanDuration(time.Since(s.Used))
					fmt.Fprintf(out, "%s\t%s ago\t%s\t%s\n", s.Key[:12], used, report.Size(s.Size), termtext.Line(cmp.Or(s.Name, "-")))
				}
				return out.Flush()
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "table", "`FORMAT` table, or json with an object for each step")
	a.RegistryFlags(cmd.Flags())
	return cmd
}

func inspect(a *app.App) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "inspect [flags] CACHE",
		Short:   "Show how much a cache holds",
		Long:    "Show how many steps, layers and bytes a cache holds, and when they were used, as JSON.\n\n" + about,
		Example: "  kiln cache inspect registry.example/app:cache",
		Args:    app.ExactArgs("a CACHE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return with(cmd.Context(), a, args[0], func(p *pack.Pack) error {
				info := struct {
					Steps     int        `json:"steps"`
					Others    int        `json:"stepsOfOtherVersions"`
					Layers    int        `json:"layers"`
					Blobs     int        `json:"blobs"`
					Size      int64      `json:"size"`
					Shortcuts int        `json:"shortcuts"`
					Mounts    int        `json:"mounts"`
					Bases     int        `json:"baseLayers"`
					Oldest    *time.Time `json:"leastRecentlyUsed,omitempty"`
					Newest    *time.Time `json:"mostRecentlyUsed,omitempty"`
				}{
					Steps: len(p.Records), Others: len(p.Foreign), Layers: len(p.Layers), Shortcuts: len(p.Shortcuts), Mounts: len(p.Mounts),
					Bases: len(p.Bases),
				}
				for _, d := range p.Blobs() {
					info.Blobs++
					info.Size += d.Size
				}
				if all := steps(p); len(all) > 0 {
					info.Newest, info.Oldest = &all[0].Used, &all[len(all)-1].Used
				}
				out := json.NewEncoder(a.Stdout)
				out.SetIndent("", "  ")
				return out.Encode(info)
			})
		},
	}
	a.RegistryFlags(cmd.Flags())
	return cmd
}

func prune(a *app.App) *cobra.Command {
	var size, age string
	var all, force bool
	cmd := &cobra.Command{
		Use:   "prune [flags] CACHE",
		Short: "Remove steps and cache mounts from a cache",
		Long: `Remove the steps from a cache that no build has used for the longest time, and cache mounts. A registry removes the blobs that no
manifest names any more when it collects garbage; in a directory, prune removes those that have been there for an hour.

` + about,
		Example: `  kiln cache prune --max-age 14d registry.example/app:cache
  kiln cache prune --max-size 2GB --force type=local,src=cache
  kiln cache prune --all registry.example/app:cache`,
		Args: app.ExactArgs("a CACHE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := caching.ParseLimit(size, age)
			if err != nil {
				return app.UsageErrorf("--%w", err)
			}
			if all == (size != "" || age != "") {
				return app.UsageErrorf("say what to remove: --max-size, --max-age, or --all alone")
			}
			place, err := open(a, args[0])
			if err != nil {
				return err
			}
			defer place.Close()
			if !force {
				if err := a.Confirm(cmd, "steps and cache mounts from the cache "+args[0]); err != nil {
					return err
				}
			}
			before, after, err := place.Prune(cmd.Context(), limit, all)
			if err != nil {
				return err
			}
			out := bufio.NewWriter(a.Stdout)
			removed, left := report.Count(before.Records-after.Records, "step"), report.Count(after.Records, "step")
			if before.Mounts > 0 {
				removed += " and " + report.Count(before.Mounts-after.Mounts, "cache mount")
				left += " and " + report.Count(after.Mounts, "cache mount")
			}
			fmt.Fprintf(out, "removed %s; the cache has %s\n", removed, left)
			return out.Flush()
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&size, "max-size", "", "`SIZE` that the cache's blobs may have, such as 2GB")
	flags.StringVar(&age, "max-age", "", "`AGE` of the last use beyond which a step is removed, such as 72h or 14d")
	flags.BoolVarP(&all, "all", "a", false, "remove all steps")
	flags.BoolVarP(&force, "force", "f", false, "do not ask")
	a.RegistryFlags(flags)
	return cmd
}
