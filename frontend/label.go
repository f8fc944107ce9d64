package frontend

import (
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// label lowers LABEL.
func (b *builder) label(s *stage, c *instructions.LabelCommand, lint *linter.Linter) {
	if s.config.Labels == nil {
		s.config.Labels = map[string]string{}
	}
	created := "LABEL"
	for _, l := range c.Labels {
		lintLegacyKeyValue(c, l, lint)
		s.config.Labels[l.Key] = l.Value
		created += " " + l.String()
	}
	s.commit(created, nil)
}
