package cli

import (
	"io"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/cmd/internal/complete"
	"github.com/kilnbuild/kiln/internal/suggest"
	"github.com/spf13/cobra"
)

// completionCommand returns the command of that name.
func completionCommand(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a script that completes commands in a shell",
		Long: `Print a script for a shell, which completes commands, flags, their values, images, stages and build arguments of the Dockerfile,
services and registries. make install installs the scripts for all users. The last example for bash needs the package bash-completion.`,
		Example: `  # bash: for this shell, and for those to come
  . <(kiln completion bash)
  kiln completion bash > ~/.local/share/bash-completion/completions/kiln

  # zsh: into a directory of $fpath, before compinit
  kiln completion zsh > ~/.zfunc/_kiln      # with fpath+=~/.zfunc in ~/.zshrc

  # fish
  kiln completion fish > ~/.config/fish/completions/kiln.fish`,
		Args: app.ExactArgs("bash, zsh or fish"),
		RunE: func(cmd *cobra.Command, args []string) error {
			scripts := map[string]string{"bash": complete.Bash, "zsh": complete.Zsh, "fish": complete.Fish}
			script, ok := scripts[args[0]]
			if !ok {
				return app.UsageErrorf("kiln has no completion for %q: use bash, zsh or fish%s", args[0], suggest.Hint(args[0], "bash", "zsh", "fish"))
			}
			_, err := io.WriteString(a.Stdout, script)
			return err
		},
	}
}
