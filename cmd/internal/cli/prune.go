package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/store"
	"github.com/spf13/cobra"
)

func pruneCommand(a *app.App) *cobra.Command {
	var all, force, dryRun bool
	var filters []string
	var maxUsed, reserved, keep, minFree string
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove unused images, layers and cache",
		Long: `Remove images without a name, blobs that no image has, and the cache, except for the steps and layers that named images
are made of. Whatever a running build uses stays.`,
		Example: `  kiln prune --dry-run
  kiln prune --filter until=168h -f
  kiln prune --all --reserved-space 5GB`,
		Args: app.ExactArgs(),
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) (err error) {
			o := store.PruneOptions{All: all, DryRun: dryRun}
			if o.Before, err = parsePruneFilters(filters, time.Now()); err != nil {
				return err
			}
			if reserved == "" {
				reserved = keep
			}
			for _, size := range []struct {
				flag, value string
				into        *int64
			}{{"max-used-space", maxUsed, &o.MaxUsed}, {"reserved-space", reserved, &o.Reserved}, {"min-free-space", minFree, &o.MinFree}} {
				if size.value == "" {
					continue
				}
				if *size.into, err = units.RAMInBytes(size.value); err != nil {
					return app.UsageErrorf("--%s %q: %w", size.flag, size.value, err)
				}
			}
			if !force && !dryRun {
				if err := a.Confirm(cmd, pruned(all)); err != nil {
					return err
				}
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error { return prune(a, cmd, k, o) })
		}),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&all, "all", "a", false, "also remove the cache of named images; the images stay")
	flags.StringArrayVar(&filters, "filter", nil, "`until=AGE` remove only what was last used longer ago, such as until=24h")
	flags.StringVar(&maxUsed, "max-used-space", "", "`SIZE` remove the least recently used until the root directory takes no more, such as 20GB")
	flags.StringVar(&reserved, "reserved-space", "", "`SIZE` keep this much in any case")
	flags.StringVar(&minFree, "min-free-space", "", "`SIZE` remove the least recently used until this much of the disk is free")
	flags.StringVar(&keep, "keep-storage", "", "`SIZE` docker's older name of --reserved-space")
	flags.BoolVarP(&force, "force", "f", false, "do not ask for confirmation")
	flags.BoolVar(&dryRun, "dry-run", false, "only print what would be removed")
	_ = flags.MarkHidden("keep-storage") // it was just added
	return cmd
}

// pruned says what prune removes.
func pruned(all bool) string {
	if all {
		return "images without a name and the whole cache"
	}
	return "images without a name and the cache that no image with a name needs"
}

func prune(a *app.App, cmd *cobra.Command, k *app.Kiln, o store.PruneOptions) error {
	sum, err := k.Root.Prune(cmd.Context(), o, report.Items(a.Stdout, time.Now()))
	total := "Total:"
	if o.DryRun {
		total = "Total that would be removed:"
	}
	if _, printErr := fmt.Fprintf(a.Stdout, "%s %s\n", total, report.Size(sum)); err == nil {
		err = printErr
	}
	return err
}

// parsePruneFilters returns the time that --filter until=AGE means; unused-for is BuildKit's name of it.
func parsePruneFilters(filters []string, now time.Time) (before time.Time, err error) {
	for _, f := range filters {
		name, value, _ := strings.Cut(f, "=")
		if name != "until" && name != "unused-for" {
			return before, app.UsageErrorf("--filter %q: the only filter is until=AGE, such as until=24h", f)
		}
		age, err := time.ParseDuration(value)
		if err != nil {
			return before, app.UsageErrorf("--filter %q: %q is not a duration, such as 24h", f, value)
		}
		before = now.Add(-age)
	}
	return before, nil
}

func duCommand(a *app.App) *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "du [flags]",
		Short: "Show disk usage",
		Long:  "Show how much of the disk images, layers and the cache take, and how much of that kiln prune would remove.",
		Example: `  kiln du
  kiln du -v`,
		Args: app.ExactArgs(),
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) error {
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				u, err := k.Root.Usage(cmd.Context())
				if err != nil {
					return err
				}
				return report.Usage(a.Stdout, u, verbose, time.Now())
			})
		}),
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "list every item")
	return cmd
}
