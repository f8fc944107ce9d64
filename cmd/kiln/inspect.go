package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/spf13/cobra"
)

func (a *app) inspectCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "inspect IMAGE...",
		Short: "Print what an image is, as docker image inspect does",
		Args:  minArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			print, err := rowPrinter(format)
			if err != nil {
				return err
			}
			return a.withRoot(cmd.Context(), func(k *kiln) error {
				var all []json.RawMessage
				for _, name := range args {
					data, err := k.images.Inspect(cmd.Context(), name)
					if err != nil {
						return err
					}
					var platforms []json.RawMessage
					if err := json.Unmarshal(data, &platforms); err != nil {
						return fmt.Errorf("print image: %w", err)
					}
					all = append(all, platforms...)
				}
				var out bytes.Buffer
				if print == nil {
					enc := json.NewEncoder(termtext.JSONWriter(&out))
					enc.SetEscapeHTML(false)
					enc.SetIndent("", "    ")
					if err := enc.Encode(all); err != nil {
						return fmt.Errorf("print image: %w", err)
					}
				} else {
					for _, data := range all {
						dec := json.NewDecoder(bytes.NewReader(data))
						dec.UseNumber()
						var v any
						if err := dec.Decode(&v); err != nil {
							return fmt.Errorf("print image: %w", err)
						}
						if err := print(&out, v); err != nil {
							return err
						}
					}
				}
				_, err := a.stdout.Write(out.Bytes())
				return err
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "print by a Go template, or json")
	return cmd
}
