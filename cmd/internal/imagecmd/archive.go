package imagecmd

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/values"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/suggest"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/store/images"
	"github.com/spf13/cobra"
)

// Save returns the command of that name.
func Save(a *app.App) *cobra.Command {
	var output, format string
	var o images.SaveOptions
	cmd := &cobra.Command{
		Use:   "save [flags] IMAGE...",
		Short: "Write images to a tar archive",
		Long: `Write images to a tar archive, in a file or on standard output. The archive is an OCI image layout that docker load reads as well.
Older engines do not know multi-platform images: use --platform to save one platform of them.`,
		Example: `  kiln save -o app.tar app:v1
  kiln save app:v1 worker:v1 | ssh host docker load
  kiln save --format oci -o all.tar multi && skopeo inspect oci-archive:all.tar`,
		Args: app.MinArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if format != "docker" && format != "oci" {
				return app.UsageErrorf("--format %q: use docker or oci%s", format, suggest.Hint(format, "docker", "oci"))
			}
			o.OCI = format == "oci"
			if output == "" && termtext.IsTerminal(os.Stdout) {
				return app.UsageErrorf("an archive is not written to a terminal: use --output, or redirect standard output")
			}
			if output != "" {
				if err := values.CheckArchive(output); err != nil {
					return app.UsageErrorf("--output: %w", err)
				}
				if err := rootdir.Absolute(&output); err != nil {
					return err
				}
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				if output == "" {
					return k.Images.Save(cmd.Context(), os.Stdout, args, o)
				}
				return exporter.WriteFile(output, func(w io.Writer) error { return k.Images.Save(cmd.Context(), w, args, o) })
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FILE` file to write (default standard output)")
	cmd.Flags().StringVar(&format, "format", "docker", "`FORMAT` docker, an OCI image layout that docker load reads, or oci, the layout alone")
	cmd.Flags().StringVar(&o.Platform, "platform", "", "`OS/ARCH` only this platform of multi-platform images")
	return cmd
}

// Load returns the command of that name.
func Load(a *app.App) *cobra.Command {
	var from, mode string
	var quiet bool
	var o images.LoadOptions
	cmd := &cobra.Command{
		Use:   "load [flags]",
		Short: "Read images from a tar archive",
		Long: `Read images from a tar archive, in a file or on standard input: an OCI image layout or an archive of docker save, uncompressed or
compressed with gzip or zstd. Every blob is verified against its digest.`,
		Example: `  kiln load -i app.tar
  docker save app:v1 | kiln load`,
		Args: app.ExactArgs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			var in io.Reader = cmd.InOrStdin()
			if from != "" {
				if err := rootdir.Absolute(&from); err != nil {
					return err
				}
				f, err := os.Open(from)
				if err != nil {
					return app.UsageErrorf("--input: %w", err)
				}
				defer f.Close()
				if info, err := f.Stat(); err == nil && info.IsDir() {
					return app.UsageErrorf("--input: %s is a directory, and not an archive", rootdir.Shown(from))
				}
				in = f
			} else if termtext.IsTerminal(in) {
				return app.UsageErrorf("an archive is not read from a terminal: use --input, or redirect standard input")
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				o.MaxSize = k.Config.Archive.Size
				var loaded []images.Loaded
				err := a.WithProgress(cmd.Context(), app.QuietMode(quiet, mode), func(ctx context.Context, s *events.Stream) (err error) {
					task := s.Task(llb.Place{}, "loading images")
					loaded, err = k.Images.Load(ctx, in, o)
					task.Done(err)
					return err
				})
				if err != nil {
					return err
				}
				return printLoaded(a, loaded)
			})
		},
	}
	app.ProgressFlag(cmd.Flags(), &mode)
	cmd.Flags().StringVarP(&from, "input", "i", "", "`FILE` file to read (default standard input)")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	cmd.Flags().StringVar(&o.Platform, "platform", "", "`OS/ARCH` only this platform of multi-platform images")
	return cmd
}

// printLoaded prints what docker load prints.
func printLoaded(a *app.App, loaded []images.Loaded) error {
	for _, img := range loaded {
		lines := []string{"Loaded image ID: " + img.ID}
		if len(img.Names) > 0 {
			lines = nil
		}
		for _, name := range img.Names {
			if ref, err := imagename.Parse(name); err == nil {
				lines = append(lines, "Loaded image: "+ref.FamiliarTagged())
			}
		}
		for _, line := range lines {
			if _, err := fmt.Fprintln(a.Stdout, termtext.Line(line)); err != nil {
				return err
			}
		}
	}
	return nil
}
