package imagecmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/table"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/store/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

// Imagetools returns the commands for images in registries, as docker buildx imagetools has them.
func Imagetools(a *app.App) []*cobra.Command {
	return []*cobra.Command{createIndex(a), inspectRemote(a)}
}

func createIndex(a *app.App) *cobra.Command {
	var names, annotations []string
	var mode string
	var o images.IndexOptions
	cmd := &cobra.Command{
		Use:   "create [flags] -t NAME SOURCE...",
		Short: "Make a multi-platform image of images in registries",
		Long: `Make an index of images in registries, each for a different platform, and push it. Blobs that the registry of NAME lacks are copied
to it. A single SOURCE is copied as it is.`,
		Example: `  kiln imagetools create -t hub.example/app hub.example/app:{amd64,arm64}
  kiln imagetools create --append -t hub.example/app hub.example/app:riscv64
  kiln imagetools create -t other.example/app:v1 hub.example/app:v1`,
		Args: app.MinArgs("SOURCE"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(names) == 0 {
				return app.UsageErrorf("%s needs a --tag NAME", cmd.CommandPath())
			}
			if len(annotations) > 0 {
				if o.Annotations, err = values.Labels(annotations); err != nil {
					return err
				}
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				var data []byte
				err := a.WithProgress(cmd.Context(), mode, func(ctx context.Context, s *events.Stream) (err error) {
					data, err = k.Images.CreateIndex(ctx, names, args, o, s)
					return err
				})
				if err != nil || !o.DryRun {
					return err
				}
				return printRaw(a, data)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&names, "tag", "t", nil, "`NAME` name to push to")
	flags.StringArrayVar(&annotations, "annotation", nil, "`KEY=VALUE` annotation of the index")
	flags.BoolVar(&o.Append, "append", false, "keep the images that NAME has for other platforms")
	flags.BoolVar(&o.DryRun, "dry-run", false, "print the index instead of pushing it")
	app.ProgressFlag(flags, &mode)
	a.RegistryFlags(flags)
	return cmd
}

// printRaw prints a document as its registry has it; to a terminal without what that interprets.
func printRaw(a *app.App, data []byte) error {
	_, err := a.Stdout.Write(data)
	return err
}

// remoteImage is what templates of kiln imagetools inspect see, named as those of buildx.
type remoteImage struct {
	Name     string
	Manifest struct {
		ocispec.Descriptor
		Manifests []ocispec.Descriptor `json:"manifests,omitempty"`
	}
	// attested finds the image's attestations, which only templates that name them need.
	attested func() (*images.Attested, error)
	ctx      context.Context
}

// provenance and sbom are what templates see of the attestations of an image for one platform.
type (
	provenance struct {
		SLSA any `json:",omitempty"`
	}
	sbom struct {
		SPDX            any   `json:",omitempty"`
		AdditionalSPDXs []any `json:",omitempty"`
	}
)

// Provenance is .Provenance of a template: that of the image, or of several by their platforms.
func (r *remoteImage) Provenance() (any, error) {
	return byPlatform(r, attestation.IsProvenance, func(all []any) any { return provenance{all[0]} })
}

// SBOM is .SBOM of a template, as Provenance.
func (r *remoteImage) SBOM() (any, error) {
	isSPDX := func(predicateType string) bool { return predicateType == attestation.SPDX }
	return byPlatform(r, isSPDX, func(all []any) any { return sbom{all[0], all[1:]} })
}

// maxPredicates bounds the attestations that a template sees, in bytes: all of them are in memory.
const maxPredicates = 128 << 20

// byPlatform returns what form makes of the predicates of the types that are wanted: that of the only image, or a map by platform. It is nil
// if there are none.
func byPlatform(r *remoteImage, wanted func(predicateType string) bool, form func([]any) any) (_ any, err error) {
	found, err := r.attested()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	all := map[string]any{}
	var only any
	left := int64(maxPredicates)
	for _, img := range found.Images {
		var predicates []any
		for _, stored := range img.Attestations {
			if !wanted(stored.PredicateType) {
				continue
			}
			if left -= stored.Desc.Size; left < 0 {
				return nil, fmt.Errorf("its attestations have more than %d MiB; kiln attest show shows one after the other", maxPredicates>>20)
			}
			data, err := found.Read(r.ctx, stored)
			if err != nil {
				return nil, err
			}
			statement, err := attestation.ParseStatement(data)
			if err != nil {
				return nil, fmt.Errorf("read the attestation %s: %w", stored.Desc.Digest, err)
			}
			var predicate any
			if err := json.Unmarshal(statement.Predicate, &predicate); err != nil {
				return nil, fmt.Errorf("read the attestation %s: %w", stored.Desc.Digest, err)
			}
			predicates = append(predicates, predicate)
		}
		if len(predicates) > 0 {
			only = form(predicates)
			all[img.Platform] = only
		}
	}
	if len(found.Images) == 1 {
		return only, nil
	}
	return all, nil
}

func inspectRemote(a *app.App) *cobra.Command {
	var raw bool
	var format string
	cmd := &cobra.Command{
		Use:   "inspect [flags] NAME",
		Short: "Show an image in a registry",
		Example: `  kiln imagetools inspect debian:bookworm
  kiln imagetools inspect --raw debian:bookworm | jq .
  kiln imagetools inspect --format '{{.Manifest.Digest}}' debian:bookworm
  kiln imagetools inspect --format '{{json .Provenance}}' hub.example/app`,
		Args: app.ExactArgs("a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := table.Template(format); err != nil {
				return err
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				r, err := k.Images.Remote(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				switch {
				case raw:
					return printRaw(a, r.Data)
				case format != "":
					v := &remoteImage{Name: r.Name, ctx: cmd.Context()}
					v.Manifest.Descriptor, v.Manifest.Manifests = r.Desc, r.Manifests
					v.attested = func() (*images.Attested, error) { return k.Images.Attested(cmd.Context(), args[0], "", true) }
					return table.Values(a.Stdout, format, []any{v})
				}
				return printRemote(a, r)
			})
		},
	}
	a.RegistryFlags(cmd.Flags())
	cmd.Flags().BoolVar(&raw, "raw", false, "print the manifest or index exactly as the registry sent it")
	cmd.Flags().StringVar(&format, "format", "", "`FORMAT` json, or a Go template")
	return cmd
}

// printRemote prints what buildx prints.
func printRemote(a *app.App, r *images.Remote) error {
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
		if of, ok := attestation.Subject(d); ok {
			fmt.Fprintf(&out, "  Attests:   %s\n", termtext.Line(of.String()))
		}
	}
	_, err := a.Stdout.Write(out.Bytes())
	return err
}
