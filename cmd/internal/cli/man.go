package cli

import (
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/manual"
	"github.com/kilnbuild/kiln/internal/version"
	"github.com/spf13/cobra"
)

// manCommand returns the command of that name.
func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write manual pages",
		Long: `Write manual pages: of every command into the directory man1 in DIR, and of kiln.toml into man5. make install installs them. Their
date is that of the source, or $SOURCE_DATE_EPOCH.`,
		Example: "  kiln man ~/.local/share/man\n  man kiln-build",
		Args:    app.ExactArgs("a DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			all := app.New(io.Discard, io.Discard)
			all.Args = Groups
			date, err := pageDate()
			if err != nil {
				return err
			}
			root := Root(all)
			otherNames := func(cmd *cobra.Command) bool { return cmd.GroupID == otherNames }
			return manual.Write(args[0], root, manual.Footer{Date: date, Version: version.String()}, otherNames)
		},
	}
}

// pageDate returns the date of manual pages; "" if nothing says it.
func pageDate() (string, error) {
	if v := os.Getenv("SOURCE_DATE_EPOCH"); v != "" {
		seconds, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return "", app.UsageErrorf("SOURCE_DATE_EPOCH %q is not a number of seconds", v)
		}
		return time.Unix(seconds, 0).UTC().Format(time.DateOnly), nil
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", nil
	}
	for _, s := range info.Settings {
		if t, err := time.Parse(time.RFC3339, s.Value); s.Key == "vcs.time" && err == nil {
			return t.UTC().Format(time.DateOnly), nil
		}
	}
	return "", nil
}
