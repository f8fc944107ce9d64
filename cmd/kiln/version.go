package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/kilnbuild/kiln/cmd/kiln/internal/app"
	"github.com/spf13/cobra"
)

func versionCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the versions of kiln and Go, and the platform",
		Example: "  kiln version",
		Args:    app.ExactArgs(),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.Stdout, "kiln %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// release is the version of a build whose source is no module and no checkout; the linker sets it (-X).
var release string

// version returns the release, or the module's version as the go command has recorded it, or the commit.
func version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}
