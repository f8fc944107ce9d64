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
	lintUsedOnce(c, &s.entrypoint, lint)
	s.config.Entrypoint = commandLine(s, c, c.ShellDependantCmdLine, lint)
	if s.cmd == nil {
		s.config.Cmd = nil
		s.sized("cmd", 0)
	}
	s.sizedList("entrypoint", s.config.Entrypoint)
	s.commit(fmt.Sprintf("ENTRYPOINT %q", s.config.Entrypoint), nil)
	return nil
}
