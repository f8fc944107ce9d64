package frontend

import (
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// env lowers ENV.
func (b *builder) env(s *stage, c *instructions.EnvCommand, lint *linter.Linter) {
	created := "ENV"
	for _, e := range c.Env {
		lintLegacyKeyValue(c, e, lint)
		lintSecret("ENV", e.Key, c.Location(), lint)
		created += " " + e.String()
		s.env = s.env.with(e.Key, e.Value)
		s.config.Env = setInPlace(s.config.Env, e.Key, e.Value)
	}
	s.commit(created, nil)
}
