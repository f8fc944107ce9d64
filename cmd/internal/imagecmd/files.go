package imagecmd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/report"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/suggest"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/store/images"
	"github.com/spf13/cobra"
)

// Cp returns the command of that name.
func Cp(a *app.App) *cobra.Command {
	var o images.CopyOptions
	cmd := &cobra.Command{
		Use:   "cp [flags] IMAGE:PATH DEST",
		Short: "Copy files out of an image",
		Long: `Copy a file or a directory out of an image of the store. PATH is absolute. If DEST is a directory, the copy goes into it; a PATH
that ends with /. means the content of a directory. Otherwise DEST is the name of the copy. With - as DEST, a tar archive goes to standard output.`,
		Example: `  kiln cp app:v1:/etc/os-release .
  kiln cp registry.example:5000/app:/srv/. out
  kiln cp app:/usr/share/doc - | tar -t`,
		Args: app.ExactArgs("an IMAGE:PATH", "a DEST"),
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) error {
			i := strings.Index(args[0], ":/")
			if i <= 0 {
				return app.UsageErrorf("%q is not IMAGE:PATH with an absolute PATH, as app:v1:/etc/passwd", args[0])
			}
			image, path, dest := args[0][:i], args[0][i+1:], args[1]
			if dest == "" {
				return app.UsageErrorf("the DEST is empty: . is the current directory")
			}
			if dest == "-" {
				if termtext.IsTerminal(os.Stdout) {
					return app.UsageErrorf("an archive is not written to a terminal: redirect standard output")
				}
				o.Tar = os.Stdout
			} else {
				slash := strings.HasSuffix(dest, "/")
				if err := rootdir.Absolute(&dest); err != nil {
					return err
				}
				if slash {
					dest += "/"
				}
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				dropped, err := k.Images.Copy(cmd.Context(), image, path, dest, o)
				if dropped.SetID > 0 {
					a.Complain(fmt.Sprintf("warning: %s without the set-user-ID and set-group-ID bits of the image", report.Count(dropped.SetID, "file")))
				}
				if dropped.Devices > 0 {
					a.Complain(fmt.Sprintf("warning: %s of the image left out", report.Count(dropped.Devices, "device")))
				}
				return err
			})
		}),
	}
	cmd.Flags().BoolVarP(&o.Follow, "follow-link", "L", false, "copy the file that a symbolic link at PATH leads to")
	cmd.Flags().StringVar(&o.Platform, "platform", "", "`OS/ARCH` platform to take of a multi-platform image (default that of this host)")
	return cmd
}

// Diff returns the command of that name.
func Diff(a *app.App) *cobra.Command {
	var format, platform string
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "diff [flags] IMAGE IMAGE",
		Short: "Compare two images",
		Long: `Show how two images of the store differ: configuration, layers, files and size. A line begins with + for what only the second image
has, - for what only the first has, and ~ for what is in both and differs. Times of files are not compared.`,
		Example: `  kiln diff app:v1 app:v2
  kiln diff --format json app:v1 app:v2 | jq -r .Name`,
		Args: app.ExactArgs("an IMAGE", "another IMAGE"),
		RunE: a.AsRoot(func(cmd *cobra.Command, args []string) error {
			if format != "text" && format != "json" {
				return app.UsageErrorf("--format %q: use text or json%s", format, suggest.Hint(format, "text", "json"))
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				found, part := false, ""
				err := k.Images.Diff(cmd.Context(), args[0], args[1], platform, func(c images.Change) error {
					var line bytes.Buffer
					if format == "json" {
						if err := json.NewEncoder(termtext.JSONWriter(&line)).Encode(c); err != nil {
							return err
						}
					} else {
						if c.Part != part {
							fmt.Fprintf(&line, "%s:\n", map[string]string{"config": "Configuration", "layer": "Layers", "file": "Files", "size": "Size in store"}[c.Part])
						}
						fmt.Fprintf(&line, "  %s\n", termtext.Line(c.String()))
					}
					found, part = true, c.Part
					_, err := a.Stdout.Write(line.Bytes())
					return err
				})
				if err == nil && found && exitCode {
					err = app.ErrFound
				}
				return err
			})
		}),
	}
	cmd.Flags().StringVar(&format, "format", "text", "`FORMAT` text, or json for one object per difference")
	cmd.Flags().StringVar(&platform, "platform", "", "`OS/ARCH` platform to take of multi-platform images (default that of this host)")
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit with status 1 if the images differ")
	return cmd
}
