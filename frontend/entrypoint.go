package frontend

import (
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// entrypoint lowers ENTRYPOINT. A CMD of the base was for its own entry point, so it goes.
func (b *builder) entrypoint(s *stage, c *instructions.EntrypointCommand, lint *linter.Linter) error {
	if err := b.spendShell(s); err != nil {
		return err
	}
	lintUsedOnce(c, &s.checks.entrypoint, lint)
	args := commandLine(s, c, c.ShellDependantCmdLine, lint)
	s.config.SetEntrypoint(args)
	if s.checks.cmd == nil {
		s.config.UnsetCmd()
	}
	s.config.Commit(fmt.Sprintf("ENTRYPOINT %q", args), nil)
	return nil
}
