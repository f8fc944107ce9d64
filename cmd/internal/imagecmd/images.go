// Package imagecmd has the commands for images: those of the store, those in registries, and logging in to registries. It does not know
// how an image is built or kept.
package imagecmd

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/cmd/internal/table"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/store/images"
	"github.com/spf13/cobra"
)

const none = "<none>"

// imageColumns are the fields that docker images has.
var imageColumns = []table.Column{
	{Field: "Repository", Heading: "REPOSITORY"}, {Field: "Tag", Heading: "TAG"}, {Field: "Digest", Heading: "DIGEST"}, {Field: "ID", Heading: "IMAGE ID"},
	{Field: "CreatedSince", Heading: "CREATED"}, {Field: "CreatedAt", Heading: "CREATED AT"}, {Field: "Size", Heading: "SIZE IN STORE"},
	{Field: "Platform", Heading: "PLATFORM"}, {Field: "Containers", Heading: "CONTAINERS"}, {Field: "SharedSize", Heading: "SHARED SIZE"},
	{Field: "UniqueSize", Heading: "UNIQUE SIZE"}, {Field: "VirtualSize", Heading: "SIZE IN STORE"},
}

// Images returns the command of that name.
func Images(a *app.App) *cobra.Command {
	var quiet, noTrunc, digests, tree bool
	var format string
	var filters []string
	cmd := &cobra.Command{
		Use:   "images [flags] [REPOSITORY[:TAG]]",
		Short: "List images",
		Long: `List the images of the store, the newest first. SIZE IN STORE is the size of an image's layers in the store: layers of a base image
are compressed as they came from the registry, layers that kiln built are uncompressed.`,
		Example: `  kiln images
  kiln images 'registry.example/*'
  kiln images --filter dangling=true -q
  kiln images --format 'table {{.ID}}\t{{.Platform}}\t{{.Size}}'`,
		Args: app.OneAtMost("REPOSITORY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				filters = append(filters, "reference="+name)
			}
			filter, err := images.ParseFilters(filters, time.Now())
			if err != nil {
				return err
			}
			usual := []string{"Repository", "Tag", "ID", "CreatedSince", "Size"}
			if digests {
				usual = []string{"Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"}
			}
			if tree && (quiet || digests || format != "") {
				return app.UsageErrorf("--tree is a format of its own, and goes without --quiet, --digests and --format")
			}
			printer, err := table.New(format, imageColumns, usual...)
			if tree {
				printer, err = table.New("", treeColumns, "Image", "ID", "Size")
			}
			if err != nil {
				return err
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				list, err := k.Images.Matching(cmd.Context(), filter)
				if err != nil {
					return err
				}
				if tree {
					return printer.Print(a.Stdout, treeRows(list, noTrunc))
				}
				rows := imageRows(list, noTrunc, time.Now())
				if quiet {
					return printIDs(a, rows)
				}
				return printer.Print(a.Stdout, rows)
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&quiet, "quiet", "q", false, "print only IDs")
	flags.BoolVar(&noTrunc, "no-trunc", false, "do not shorten IDs")
	flags.BoolVar(&digests, "digests", false, "also print the digests of manifests")
	flags.BoolVar(&tree, "tree", false, "print the platforms of each image below it")
	flags.BoolP("all", "a", false, "no effect, as kiln hides no images")
	flags.StringArrayVarP(&filters, "filter", "f", nil, "`FILTER` dangling=true, label=KEY[=VALUE], before=IMAGE, since=IMAGE, reference=PATTERN or until=24h")
	flags.StringVar(&format, "format", "", "`FORMAT` table, json, a Go template, or 'table TEMPLATE' with \\t between columns")
	return cmd
}

// printIDs prints the IDs of rows, each once.
func printIDs(a *app.App, rows []table.Row) error {
	var out bytes.Buffer
	seen := map[string]bool{}
	for _, r := range rows {
		if !seen[r["ID"]] {
			seen[r["ID"]] = true
			fmt.Fprintln(&out, r["ID"])
		}
	}
	_, err := a.Stdout.Write(out.Bytes())
	return err
}

// imageRows returns a row for each name of each image.
func imageRows(images []images.Info, noTrunc bool, now time.Time) []table.Row {
	var rows []table.Row
	for _, i := range images {
		names := i.Names
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			repository, tag := splitName(name)
			row := table.Row{
				"Repository": repository, "Tag": tag, "ID": shortID(i.ID, noTrunc), "Digest": orNone(i.Digest), "Platform": strings.Join(i.Platforms, ","),
				"Size": report.Size(i.Size), "VirtualSize": report.Size(i.Size), "Containers": "N/A", "SharedSize": "N/A", "UniqueSize": "N/A",
			}
			row["CreatedSince"], row["CreatedAt"] = since(i.Created, now), "N/A"
			if !i.Created.IsZero() {
				row["CreatedAt"] = i.Created.Local().Format("2006-01-02 15:04:05 -0700 MST")
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// treeColumns are those of --tree.
var treeColumns = []table.Column{{Field: "Image", Heading: "IMAGE"}, {Field: "ID", Heading: "ID"}, {Field: "Size", Heading: "SIZE IN STORE"}}

// treeRows returns rows for the names of each image, and below the last name one for each of its platforms, with the digest of its manifest.
func treeRows(images []images.Info, noTrunc bool) []table.Row {
	var rows []table.Row
	for _, i := range images {
		names := i.Names
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			shown := none
			if ref, err := imagename.Parse(name); err == nil {
				shown = ref.FamiliarTagged()
			}
			rows = append(rows, table.Row{"Image": shown, "ID": shortID(i.ID, noTrunc), "Size": report.Size(i.Size)})
		}
		for n, p := range i.Parts {
			branch := "├─ "
			if n == len(i.Parts)-1 {
				branch = "└─ "
			}
			rows = append(rows, table.Row{"Image": branch + p.Platform, "ID": shortID(p.Digest, noTrunc), "Size": report.Size(p.Size)})
		}
	}
	return rows
}

// since returns how long ago a time was; the zero time is not known.
func since(t, now time.Time) string {
	if t.IsZero() {
		return "N/A"
	}
	return units.HumanDuration(now.Sub(t)) + " ago"
}

// shortID returns the first digits of an ID, or all of it.
func shortID(id string, whole bool) string {
	if whole {
		return id
	}
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// splitName returns the repository of an image name, as short as docker prints it, and the tag.
func splitName(name string) (repository, tag string) {
	ref, err := imagename.Parse(name)
	if err != nil {
		return orNone(name), none
	}
	repository, _ = imagename.SplitTag(imagename.Name{Registry: ref.Registry, Repository: ref.Repository}.FamiliarTagged())
	return repository, orNone(ref.Tag)
}

func orNone(s string) string {
	if s == "" {
		return none
	}
	return s
}
