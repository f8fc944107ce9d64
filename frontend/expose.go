package frontend

import (
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/frontend/expand"
	"github.com/kilnbuild/kiln/frontend/imageconfig"
)

// expose lowers EXPOSE. A variable may hold several ports, so the words are made after it is expanded.
func (b *builder) expose(s *stage, c *instructions.ExposeCommand, check *linter.Linter) error {
	ports := []string{}
	for _, word := range c.Ports {
		words, err := b.words.Words(word, s.env)
		if err != nil {
			return err
		}
		for _, w := range words {
			parsed, odd, err := imageconfig.ParsePorts(w)
			if odd.Casing {
				check.Run(&linter.RuleExposeProtoCasing, c.Location(), linter.RuleExposeProtoCasing.Format(w))
			}
			if odd.Host {
				check.Run(&linter.RuleExposeInvalidFormat, c.Location(), linter.RuleExposeInvalidFormat.Format(w))
			}
			if err != nil {
				return fmt.Errorf("invalid port %q: %w", w, err)
			}
			if err := b.budget.Spend(4 * expand.EntrySize * len(parsed)); err != nil {
				return err
			}
			ports = append(ports, parsed...)
		}
	}
	if err := s.config.Expose(ports); err != nil {
		return err
	}
	s.config.Commit(fmt.Sprintf("EXPOSE %v", ports), nil)
	return nil
}
