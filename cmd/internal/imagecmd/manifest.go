package imagecmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/store/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
)

// Manifest returns the commands of docker manifest.
func Manifest(a *app.App) []*cobra.Command {
	return []*cobra.Command{createList(a), annotateList(a), pushList(a), inspectList(a), removeList(a)}
}

// insecureFlag adds the flag of that name of docker manifest, and returns what applies it to names.
func insecureFlag(a *app.App, cmd *cobra.Command) func(names ...string) {
	insecure := cmd.Flags().Bool("insecure", false, "use --insecure-registry for the registries of the images")
	a.RegistryFlags(cmd.Flags())
	return func(names ...string) {
		if *insecure {
			a.Insecure(names...)
		}
	}
}

func createList(a *app.App) *cobra.Command {
	var amend bool
	cmd := &cobra.Command{
		Use:   "create [flags] LIST IMAGE...",
		Short: "Make a list of images for several platforms",
		Long: `Make a list of images in registries, each for a platform of its own, as machines of each architecture built them. The list is
kept in the root directory until kiln manifest push sends it to the registry of its name. Of an IMAGE that is a list itself, its images are
taken.`,
		Example: `  kiln manifest create corp.example/app corp.example/app:{amd64,arm64}
  kiln manifest push corp.example/app`,
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) < 2 {
			return app.UsageErrorf("%s takes a LIST and at least one IMAGE", cmd.CommandPath())
		}
		return nil
	}
	apply := insecureFlag(a, cmd)
	cmd.Flags().BoolVarP(&amend, "amend", "a", false, "add to a list that exists")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		apply(args...)
		return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
			l, err := k.Images.CreateList(cmd.Context(), args[0], args[1:], amend)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Stdout, "Created manifest list %s\n", termtext.Line(l.Name))
			return err
		})
	}
	return cmd
}

func annotateList(a *app.App) *cobra.Command {
	var p ocispec.Platform
	cmd := &cobra.Command{
		Use:     "annotate [flags] LIST IMAGE",
		Short:   "Change the platform of an image in a list",
		Example: "  kiln manifest annotate --variant v7 corp.example/app corp.example/app:arm",
		Args:    app.ExactArgs("a LIST", "an IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error { return k.Images.Annotate(args[0], args[1], p) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&p.OS, "os", "", "`OS` operating system")
	flags.StringVar(&p.Architecture, "arch", "", "`ARCH` architecture")
	flags.StringVar(&p.Variant, "variant", "", "`VARIANT` variant of the architecture")
	flags.StringVar(&p.OSVersion, "os-version", "", "`VERSION` version of the operating system")
	flags.StringSliceVar(&p.OSFeatures, "os-features", nil, "`FEATURE,...` features of the operating system")
	return cmd
}

func pushList(a *app.App) *cobra.Command {
	var purge bool
	var mode string
	cmd := &cobra.Command{
		Use:   "push [flags] LIST",
		Short: "Send a list to the registry of its name",
		Long: `Send a list to the registry of its name, and print its digest. Images that are in other registries or repositories are copied
there.`,
		Example: "  kiln manifest push corp.example/app",
		Args:    app.ExactArgs("a LIST"),
	}
	apply := insecureFlag(a, cmd)
	cmd.Flags().BoolVarP(&purge, "purge", "p", false, "remove the list afterwards")
	app.ProgressFlag(cmd.Flags(), &mode)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		apply(args[0])
		return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
			var pushed digest.Digest
			err := a.WithProgress(cmd.Context(), mode, func(ctx context.Context, s *events.Stream) (err error) {
				pushed, err = k.Images.PushList(ctx, args[0], s)
				return err
			})
			if err == nil && purge {
				err = k.Images.RemoveList(args[0])
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Stdout, pushed)
			return err
		})
	}
	return cmd
}

func removeList(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:     "rm LIST...",
		Short:   "Remove lists from the root directory",
		Long:    "Remove lists from the root directory. What was pushed stays in its registry.",
		Example: "  kiln manifest rm corp.example/app",
		Args:    app.MinArgs("LIST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				var failed []error
				for _, name := range args {
					failed = append(failed, k.Images.RemoveList(name))
				}
				return errors.Join(failed...)
			})
		},
	}
}

// verboseManifest is what docker manifest inspect --verbose prints of an image.
type verboseManifest struct {
	Ref        string
	Descriptor ocispec.Descriptor
	Docker     json.RawMessage `json:"SchemaV2Manifest,omitempty"`
	OCI        json.RawMessage `json:"OCIManifest,omitempty"`
}

func inspectList(a *app.App) *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "inspect [flags] [LIST] IMAGE",
		Short: "Print a list, or the manifest of an image in a registry",
		Long: `Print a list of the root directory, the manifest or index of an image in a registry, or what a list says of one of its
images.`,
		Example: `  kiln manifest inspect debian:bookworm
  kiln manifest inspect corp.example/app corp.example/app:arm64`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return app.UsageErrorf("%s takes an IMAGE, and before it a LIST at most", cmd.CommandPath())
			}
			return nil
		},
	}
	apply := insecureFlag(a, cmd)
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "print names, descriptors and manifests of all images")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		apply(args...)
		return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
			var data []byte
			var entries []images.ListEntry
			one := len(args) == 2
			l, err := k.Images.ManifestList(args[0])
			switch {
			case len(args) == 2 && err == nil:
				var e *images.ListEntry
				if e, err = l.Find(args[1]); err == nil {
					entries = []images.ListEntry{*e}
					data, err = json.Marshal(e.Desc)
				}
			case err == nil:
				entries = l.Entries
				data, err = l.Index()
			case len(args) == 1 && errors.As(err, new(*images.NoListError)):
				var r *images.Remote
				if r, err = k.Images.Remote(cmd.Context(), args[0]); err == nil {
					data, entries, one = r.Data, r.Entries(), r.Manifests == nil
				}
			}
			if err == nil && verbose {
				data, err = verboseManifests(cmd.Context(), k, entries, one)
			}
			if err != nil {
				return err
			}
			var out bytes.Buffer
			if err := json.Indent(&out, data, "", "   "); err != nil {
				return err
			}
			return printRaw(a, append(out.Bytes(), '\n'))
		})
	}
	return cmd
}

// verboseManifests describes images with their manifests: one alone, or a list.
func verboseManifests(ctx context.Context, k *app.Kiln, entries []images.ListEntry, one bool) ([]byte, error) {
	list := []verboseManifest{}
	for _, e := range entries {
		r, err := k.Images.RemoteEntry(ctx, e)
		if err != nil {
			return nil, err
		}
		v := verboseManifest{Ref: e.Ref, Descriptor: e.Desc, OCI: r.Data}
		if r.Desc.MediaType == cas.MediaTypeDockerManifest {
			v.Docker, v.OCI = r.Data, nil
		}
		list = append(list, v)
	}
	if one {
		return json.Marshal(list[0])
	}
	return json.Marshal(list)
}
