package frontend

import (
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/frontend/lint"
)

// cmd lowers CMD.
func (b *builder) cmd(s *stage, c *instructions.CmdCommand, check *linter.Linter) error {
	if err := b.spendShell(s); err != nil {
		return err
	}
	lint.UsedOnce(c, &s.checks.cmd, check)
	args := commandLine(s, c, c.ShellDependantCmdLine, check)
	s.config.SetCmd(args)
	s.config.Commit(fmt.Sprintf("CMD %q", args), nil)
	return nil
}

// spendShell takes the stage's shell, which becomes part of a command, off the budget.
func (b *builder) spendShell(s *stage) error { return b.budget.Spend(s.config.ShellSize()) }

// commandLine returns the arguments of CMD and ENTRYPOINT: the shell form as the shell gets it.
func commandLine(s *stage, c instructions.Command, line instructions.ShellDependantCmdLine, check *linter.Linter) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	if len(s.config.Shell()) == 0 {
		check.Run(&linter.RuleJSONArgsRecommended, c.Location(), linter.RuleJSONArgsRecommended.Format(c.Name()))
	}
	return append(s.shell(), strings.Join(line.CmdLine, " "))
}
