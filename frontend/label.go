package frontend

import (
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/frontend/lint"
)

// label lowers LABEL.
func (b *builder) label(s *stage, c *instructions.LabelCommand, check *linter.Linter) error {
	var created strings.Builder
	created.WriteString("LABEL")
	for _, l := range c.Labels {
		lint.LegacyKeyValue(c, l, check)
		if err := s.config.SetLabel(l.Key, l.Value); err != nil {
			return err
		}
		created.WriteString(" " + l.String())
	}
	s.config.Commit(created.String(), nil)
	return nil
}
