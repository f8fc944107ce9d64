package frontend

import (
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/frontend/lint"
)

// entrypoint lowers ENTRYPOINT. A CMD of the base was for its own entry point, so it goes.
func (b *builder) entrypoint(s *stage, c *instructions.EntrypointCommand, check *linter.Linter) error {
	if err := b.spendShell(s); err != nil {
		return err
	}
	lint.UsedOnce(c, &s.checks.entrypoint, check)
	args := commandLine(s, c, c.ShellDependantCmdLine, check)
	s.config.SetEntrypoint(args)
	if s.checks.cmd == nil {
		s.config.UnsetCmd()
	}
	s.config.Commit(fmt.Sprintf("ENTRYPOINT %q", args), nil)
	return nil
}
