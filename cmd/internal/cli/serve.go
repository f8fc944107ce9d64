package cli

import (
	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/spf13/cobra"
)

// serveCommand returns the command of that name.
func serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "serve [flags of kilnd]",
		Short: "Serve BuildKit's API, for docker buildx",
		Long: `Serve BuildKit's API, so that docker buildx, bake, compose and other clients of BuildKit build with kiln. It executes
kilnd, which lies beside kiln and has flags of its own: those of buildkitd. kiln serve --help lists them.`,
		Example: `  kiln serve
  docker buildx create --use --driver remote unix:///run/kiln/kilnd.sock
  docker buildx build -t registry.example/app --push .`,
		DisableFlagParsing: true,
		RunE:               func(_ *cobra.Command, args []string) error { return app.ExecDaemon(args...) },
	}
}
