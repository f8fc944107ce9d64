package app

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/spf13/cobra"
)

// Confirm asks whether to remove something. Without a terminal nobody can answer.
func (a *App) Confirm(cmd *cobra.Command, what string) error {
	if !termtext.IsTerminal(cmd.InOrStdin()) {
		return UsageErrorf("nothing was removed: standard input is not a terminal, so %s needs --force or --dry-run", cmd.CommandPath())
	}
	if _, err := fmt.Fprintf(a.Stdout, "WARNING! This will remove %s.\nAre you sure you want to continue? [y/N] ", what); err != nil {
		return err
	}
	answer, err := Ask(cmd, func() (string, error) { return bufio.NewReader(cmd.InOrStdin()).ReadString('\n') })
	if err != nil && err != io.EOF { // an end of input is a no
		return err
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return UsageErrorf("nothing was removed")
	}
	return nil
}

// Ask returns what read returns, which waits for the user, unless the context of the command ends first.
func Ask(cmd *cobra.Command, read func() (string, error)) (string, error) {
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, 1)
	go func() { // a read of a terminal cannot be interrupted
		text, err := read()
		answers <- answer{text, err}
	}()
	select {
	case a := <-answers:
		return a.text, a.err
	case <-cmd.Context().Done():
		return "", context.Cause(cmd.Context())
	}
}
