package frontend

import (
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// shell lowers SHELL.
func (b *builder) shell(s *stage, c *instructions.ShellCommand) {
	s.config.SetShell(c.Shell)
	s.config.Commit(fmt.Sprintf("SHELL %v", c.Shell), nil)
}
