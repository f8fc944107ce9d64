package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/kilnbuild/kiln/cmd/kiln/internal/table"
	"github.com/kilnbuild/kiln/cmd/kiln/internal/values"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/store/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

// imagetoolsCommands returns the commands for images in registries, as docker buildx imagetools has them.
func (a *app) imagetoolsCommands() []*cobra.Command {
	return []*cobra.Command{a.createIndexCommand(), a.inspectRemoteCommand()}
}

func (a *app) createIndexCommand() *cobra.Command {
	var names, annotations []string
	var mode string
	var o images.IndexOptions
	cmd := &cobra.Command{
		Use:   "create -t NAME SOURCE...",
		Short: "Make one image for several platforms of images in registries",
		Long: `Make an index of images in registries, each for a platform of its own, as machines of each architecture built them, and push it. What the
registry of NAME lacks is copied there. One SOURCE alone is copied as it is.`,
		Example: `  kiln imagetools create -t registry.example/app:v1 registry.example/app:v1-amd64 registry.example/app:v1-arm64
  kiln imagetools create --append -t registry.example/app:v1 registry.example/app:v1-riscv64
  kiln imagetools create -t other.example/app:v1 registry.example/app:v1`,
		Args: minArgs("SOURCE"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(names) == 0 {
				return usageErrorf("%s needs a --tag NAME", cmd.CommandPath())
			}
			if len(annotations) > 0 {
				if o.Annotations, err = values.Labels(annotations); err != nil {
					return err
				}
			}
			return a.withRoot(cmd.Context(), func(k *kiln) error {
				var data []byte
				err := a.withProgress(cmd.Context(), mode, func(ctx context.Context, s *events.Stream) (err error) {
					data, err = k.images.CreateIndex(ctx, names, args, o, s)
					return err
				})
				if err != nil || !o.DryRun {
					return err
				}
				return a.printRaw(data)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&names, "tag", "t", nil, "the name to push to; several have the same image")
	flags.StringArrayVar(&annotations, "annotation", nil, "KEY=VALUE of the index")
	flags.BoolVar(&o.Append, "append", false, "keep what NAME has; images for the same platform are replaced")
	flags.BoolVar(&o.DryRun, "dry-run", false, "print the index and push nothing")
	progressFlag(flags, &mode)
	return cmd
}

// printRaw prints a document as its registry has it; to a terminal without what that interprets.
func (a *app) printRaw(data []byte) error {
	_, err := a.stdout.Write(data)
	return err
}

// remoteImage is what templates of kiln imagetools inspect see, named as those of buildx.
type remoteImage struct {
	Name     string
	Manifest struct {
		ocispec.Descriptor
		Manifests []ocispec.Descriptor `json:"manifests,omitempty"`
	}
}

func (a *app) inspectRemoteCommand() *cobra.Command {
	var raw bool
	var format string
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Show an image in a registry",
		Example: `  kiln imagetools inspect debian:bookworm
  kiln imagetools inspect --raw debian:bookworm | jq .
  kiln imagetools inspect --format '{{.Manifest.Digest}}' debian:bookworm`,
		Args: exactArgs("a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := table.Template(format); err != nil {
				return err
			}
			return a.withRoot(cmd.Context(), func(k *kiln) error {
				r, err := k.images.Remote(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				switch {
				case raw:
					return a.printRaw(r.Data)
				case format != "":
					v := remoteImage{Name: r.Name}
					v.Manifest.Descriptor, v.Manifest.Manifests = r.Desc, r.Manifests
					return table.Values(a.stdout, format, []any{v})
				}
				return a.printRemote(r)
			})
		},
	}
	cmd.Flags().BoolVar(&raw, "raw", false, "print the manifest or index as the registry has it")
	cmd.Flags().StringVar(&format, "format", "", "print by a Go template, or json")
	return cmd
}

// printRemote prints what buildx prints.
func (a *app) printRemote(r *images.Remote) error {
	var out bytes.Buffer
	fmt.Fprintf(&out, "Name:      %s\nMediaType: %s\nDigest:    %s\n", termtext.Line(r.Name), termtext.Line(r.Desc.MediaType), r.Desc.Digest)
	if len(r.Manifests) > 0 {
		fmt.Fprint(&out, "\nManifests:\n")
	}
	for i, d := range r.Manifests {
		if i > 0 {
			fmt.Fprintln(&out)
		}
		fmt.Fprintf(&out, "  Name:      %s@%s\n  MediaType: %s\n", termtext.Line(r.Name), d.Digest, termtext.Line(d.MediaType))
		if d.Platform != nil {
			fmt.Fprintf(&out, "  Platform:  %s\n", termtext.Line(image.PlatformName(*d.Platform)))
		}
	}
	_, err := a.stdout.Write(out.Bytes())
	return err
}

// manifestCommands returns the commands of docker manifest that kiln has.
func (a *app) manifestCommands() []*cobra.Command {
	inspect := &cobra.Command{
		Use:     "inspect NAME",
		Short:   "Print the manifest or index of an image in a registry",
		Example: "  kiln manifest inspect debian:bookworm",
		Args:    exactArgs("a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withRoot(cmd.Context(), func(k *kiln) error {
				r, err := k.images.Remote(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				var out bytes.Buffer
				if err := json.Indent(&out, r.Data, "", "   "); err != nil {
					return err
				}
				return a.printRaw(append(out.Bytes(), '\n'))
			})
		},
	}
	return []*cobra.Command{inspect}
}
