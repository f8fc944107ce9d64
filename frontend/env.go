package frontend

import (
	"errors"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// env lowers ENV.
func (b *builder) env(s *stage, c *instructions.EnvCommand, lint *linter.Linter) error {
	var created strings.Builder
	created.WriteString("ENV")
	for _, e := range c.Env {
		lintLegacyKeyValue(c, e, lint)
		lintSecret("ENV", e.Key, c.Location(), lint)
		created.WriteString(" " + e.String())
		if err := errors.Join(s.env.Set(e.Key, e.Value), s.config.SetEnv(e.Key, e.Value)); err != nil {
			return err
		}
	}
	s.config.Commit(created.String(), nil)
	return nil
}
