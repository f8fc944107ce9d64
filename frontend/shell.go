package frontend

import (
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// shell lowers SHELL.
func (b *builder) shell(s *stage, c *instructions.ShellCommand) {
	s.config.Shell = c.Shell
	s.sizedList("shell", c.Shell)
	s.commit(fmt.Sprintf("SHELL %v", c.Shell), nil)
}
