package frontend

import (
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/kilnbuild/kiln/frontend/imageconfig"
	"github.com/kilnbuild/kiln/parser"
)

// onbuild lowers ONBUILD, which has no history entry.
func (b *builder) onbuild(s *stage, c *instructions.OnbuildCommand) {
	s.config.AddTrigger(c.Expression)
}

// maxTriggers limits the bytes of all triggers that run in one build for one platform, like those of a Dockerfile: each stage runs
// those of its base. Each counts its text and imageconfig.HistorySize.
const maxTriggers = 16 << 20

// triggers returns those that a stage of the Dockerfile sets for the stages that are built on it.
func (s *stage) triggers() []string {
	if !s.hasTriggers {
		s.hasTriggers = true
		for _, c := range s.commands {
			if o, ok := c.Command.(*instructions.OnbuildCommand); ok {
				s.setTriggers = append(s.setTriggers, o.Expression)
			}
		}
	}
	return s.setTriggers
}

// addTriggers puts the triggers of the base of s before its own instructions.
func (b *builder) addTriggers(s *stage) error {
	if s.implicit || s.isContext {
		return nil
	}
	var triggers []string
	if s.base != nil {
		triggers = s.base.triggers()
	} else if s.image != nil {
		triggers = s.image.config.Triggers()
	}
	var commands []command
	for _, text := range triggers {
		if err := b.ended(); err != nil {
			return err
		}
		if b.triggers += len(text) + imageconfig.HistorySize; b.triggers > maxTriggers {
			return b.at(fmt.Errorf("the ONBUILD triggers of all stages have more than %d MiB", maxTriggers>>20), s.src.Location)
		}
		c, err := parser.ParseTrigger(b.opts.Filename, text, s.src.Location, b.check)
		if err != nil {
			return err
		}
		cmd, err := b.command(s, c)
		if err != nil {
			return b.at(err, s.src.Location)
		}
		cmd.onBuild = true
		commands = append(commands, cmd)
		s.steps += steps(c)
	}
	s.commands = append(commands, s.commands...)
	return nil
}
