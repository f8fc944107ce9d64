package frontend

import (
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/kilnbuild/kiln/parser"
)

// onbuild lowers ONBUILD, which has no history entry.
func (b *builder) onbuild(s *stage, c *instructions.OnbuildCommand) {
	s.config.OnBuild = append(s.config.OnBuild, c.Expression)
}

// addTriggers puts the triggers of the base of s before its own instructions, and says whether they read from other stages.
func (b *builder) addTriggers(s *stage) (bool, error) {
	if s.implicit || s.replaced() {
		return false, nil
	}
	triggers := s.config.OnBuild
	s.config.OnBuild = nil
	if s.base != nil {
		triggers = nil
		for _, c := range s.base.commands {
			if o, ok := c.Command.(*instructions.OnbuildCommand); ok {
				triggers = append(triggers, o.Expression)
			}
		}
	}
	var commands []command
	read := false
	for _, text := range triggers {
		if err := b.ended(); err != nil {
			return false, err
		}
		c, err := parser.ParseTrigger(b.opts.Filename, text, s.src.Location, b.lint)
		if err != nil {
			return false, err
		}
		cmd, err := b.command(s, c)
		if err != nil {
			return false, b.at(err, s.src.Location)
		}
		cmd.onBuild = true
		commands = append(commands, cmd)
		s.steps += steps(c)
		read = read || len(cmd.sources) > 0
	}
	s.commands = append(commands, s.commands...)
	return read, nil
}
