package frontend

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// label lowers LABEL.
func (b *builder) label(s *stage, c *instructions.LabelCommand, lint *linter.Linter) error {
	if err := s.ownMaps(b.budget); err != nil {
		return err
	}
	var created strings.Builder
	created.WriteString("LABEL")
	for _, l := range c.Labels {
		lintLegacyKeyValue(c, l, lint)
		s.setLabel(l.Key, l.Value)
		created.WriteString(" " + l.String())
	}
	s.commit(created.String(), nil)
	return nil
}
