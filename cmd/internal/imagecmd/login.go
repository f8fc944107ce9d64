package imagecmd

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/kilnbuild/kiln/cmd/internal/app"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// maxPassword is the most bytes that are read for a password; tokens of clouds have a few thousand.
const maxPassword = 64 << 10

// Login returns the command of that name.
func Login(a *app.App) *cobra.Command {
	var user, password string
	var fromStdin bool
	cmd := &cobra.Command{
		Use:   "login [flags] [REGISTRY]",
		Short: "Log in to a registry",
		Long: `Check a user name and password with a registry, Docker Hub by default, and store them where docker and kiln look for them: with the
credential helper that Docker's config.json names, or in config.json itself. A password that the registry refuses is not stored.`,
		Example: `  kiln login                     # asks for user name and password
  kiln login -u ci --password-stdin registry.example < token
  pass show registry | kiln login -u ci --password-stdin registry.example:5000`,
		Args: app.OneAtMost("REGISTRY"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			given := cmd.Flags().Changed("password")
			switch {
			case given && fromStdin:
				return app.UsageErrorf("--password and --password-stdin exclude each other")
			case (given || fromStdin) && user == "":
				return app.UsageErrorf("a password needs --username")
			case given:
				a.Complain("warning: --password shows the password to other users of the machine; use --password-stdin")
			case fromStdin:
				password, err = passwordFrom(cmd.InOrStdin())
			default:
				user, password, err = askPassword(a, cmd, user)
			}
			if err == nil && password == "" {
				err = app.UsageErrorf("the password is empty")
			}
			if err != nil {
				return err
			}
			return login(a, cmd, auth.ServerName(strings.Join(args, "")), user, password)
		},
	}
	cmd.Flags().StringVarP(&user, "username", "u", "", "`NAME` user name")
	cmd.Flags().StringVarP(&password, "password", "p", "", "`PASSWORD` password, visible to other users of the host; better use --password-stdin")
	a.RegistryFlags(cmd.Flags())
	cmd.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input")
	return cmd
}

func login(a *app.App, cmd *cobra.Command, name, user, password string) error {
	cfg, err := a.Configuration()
	if err != nil {
		return &app.InternalError{Err: err}
	}
	if err := registry.New(cfg.Registries).CheckLogin(cmd.Context(), name, user, password); err != nil {
		return err
	}
	at, err := auth.Store(cmd.Context(), name, user, password)
	if err != nil {
		return err
	}
	if auth.InEnvironment(name) {
		a.Complain("warning: the credentials in $DOCKER_AUTH_CONFIG come before the stored ones")
	}
	where := at.File + ", which is not encrypted; a credential helper (credsStore) is safer"
	if at.Helper != "" {
		where = at.Helper
	}
	_, err = fmt.Fprintf(a.Stdout, "Login Succeeded: the password is in %s\n", termtext.Line(where))
	return err
}

// passwordFrom reads a password up to the end of r, without the end of its line.
func passwordFrom(r io.Reader) (string, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxPassword+1))
	if err == nil && len(data) > maxPassword {
		err = app.UsageErrorf("the password has more than %d bytes", maxPassword)
	}
	return strings.TrimRight(string(data), "\r\n"), err
}

// askPassword asks for a password at the terminal, which does not show it, and for a user name if there is none yet.
func askPassword(a *app.App, cmd *cobra.Command, user string) (string, string, error) {
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !termtext.IsTerminal(in) {
		return "", "", app.UsageErrorf("standard input is not a terminal, so %s needs --username and --password-stdin", cmd.CommandPath())
	}
	if user == "" {
		fmt.Fprint(a.Stderr, "Username: ")
		line, err := app.Ask(cmd, func() (string, error) { return bufio.NewReader(in).ReadString('\n') })
		if user = strings.TrimSpace(line); err != nil || user == "" {
			return "", "", app.UsageErrorf("there is no user name")
		}
	}
	state, err := term.GetState(int(in.Fd()))
	if err != nil {
		return "", "", err
	}
	fmt.Fprint(a.Stderr, "Password: ")
	password, err := app.Ask(cmd, func() (string, error) {
		data, err := term.ReadPassword(int(in.Fd()))
		return string(data), err
	})
	fmt.Fprintln(a.Stderr)
	if err != nil {
		_ = term.Restore(int(in.Fd()), state) // the read was given up, and still hides what is typed
	}
	return user, password, err
}

// Logout returns the command of that name.
func Logout(a *app.App) *cobra.Command {
	return &cobra.Command{
		Use:     "logout [REGISTRY]",
		Short:   "Remove the password of a registry",
		Long:    "Remove the user name and password of a registry, Docker Hub by default, from Docker's config.json or its credential helper.",
		Example: "  kiln logout registry.example:5000",
		Args:    app.OneAtMost("REGISTRY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := auth.ServerName(strings.Join(args, ""))
			found, err := auth.Erase(cmd.Context(), name)
			if err != nil {
				return err
			}
			text := "Removed the password of " + name
			if !found {
				text = "Not logged in to " + name
			}
			_, err = fmt.Fprintln(a.Stdout, termtext.Line(text))
			return err
		},
	}
}
