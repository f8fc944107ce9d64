package imagecmd

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/table"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/spf13/cobra"
)

// Inspect returns the command of that name.
func Inspect(a *app.App) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "inspect [flags] IMAGE...",
		Short: "Show the configuration of images",
		Long:  "Print the configuration of images as JSON, as docker image inspect does.",
		Example: `  kiln inspect app
  kiln inspect -f '{{.ID}} {{json .Config.Env}}' app`,
		Args: app.MinArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := table.Template(format); err != nil {
				return err
			}
			return a.WithRoot(cmd.Context(), func(k *app.Kiln) error {
				all := []any{}
				for _, name := range args {
					platforms, err := k.Images.Inspect(cmd.Context(), name)
					if err != nil {
						return err
					}
					for _, p := range platforms {
						all = append(all, p)
					}
				}
				if format != "" {
					return table.Values(a.Stdout, format, all)
				}
				var out bytes.Buffer
				enc := json.NewEncoder(termtext.JSONWriter(&out))
				enc.SetEscapeHTML(false)
				enc.SetIndent("", "    ")
				if err := enc.Encode(all); err != nil {
					return fmt.Errorf("print image: %w", err)
				}
				_, err := a.Stdout.Write(out.Bytes())
				return err
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "`FORMAT` json, or a Go template")
	cmd.Flags().String("type", "image", "`TYPE` no effect, as kiln only has images")
	return cmd
}
