package frontend

import (
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// cmd lowers CMD.
func (b *builder) cmd(s *stage, c *instructions.CmdCommand, lint *linter.Linter) error {
	if err := b.spendShell(s); err != nil {
		return err
	}
	lintUsedOnce(c, &s.cmd, lint)
	s.config.Cmd = commandLine(s, c, c.ShellDependantCmdLine, lint)
	//lint:ignore SA1019 BuildKit sets the field, so an image is the same only with it
	s.config.ArgsEscaped = true
	s.sizedList("cmd", s.config.Cmd)
	s.commit(fmt.Sprintf("CMD %q", s.config.Cmd), nil)
	return nil
}

// spendShell takes the stage's shell, which becomes part of a command, off the budget.
func (b *builder) spendShell(s *stage) error { return b.budget.spend(s.sizes["shell"]) }

// commandLine returns the arguments of CMD and ENTRYPOINT: the shell form as the shell gets it.
func commandLine(s *stage, c instructions.Command, line instructions.ShellDependantCmdLine, lint *linter.Linter) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	if len(s.config.Shell) == 0 {
		lint.Run(&linter.RuleJSONArgsRecommended, c.Location(), linter.RuleJSONArgsRecommended.Format(c.Name()))
	}
	return append(s.shell(), strings.Join(line.CmdLine, " "))
}
