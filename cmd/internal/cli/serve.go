package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/spf13/cobra"
)

// daemonName is the program that serves BuildKit's API. It is another one, since what it is made of would make each start of kiln slower.
const daemonName = "kilnd"

// serveCommand returns the command of that name.
func serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "serve [flags of kilnd]",
		Short: "Serve BuildKit's API, for docker buildx",
		Long: `Serve BuildKit's API, so that docker buildx, bake, compose and other clients of BuildKit build with kiln. It executes
kilnd, which lies beside kiln and has flags of its own: those of buildkitd. kiln serve --help lists them.`,
		Example: `  kiln serve
  docker buildx create --use --name kiln --driver remote unix:///run/kiln/kilnd.sock
  docker buildx build -t registry.example/app --push .`,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return &app.InternalError{Err: err}
			}
			path := filepath.Join(filepath.Dir(self), daemonName)
			err = syscall.Exec(path, slices.Concat([]string{daemonName}, args), os.Environ())
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("there is no %s: it is a program of its own, which make build makes beside kiln", path)
			}
			return fmt.Errorf("execute %s: %w", path, err)
		},
	}
}
