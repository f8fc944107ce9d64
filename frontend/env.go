package frontend

import (
	"errors"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/frontend/lint"
)

// env lowers ENV.
func (b *builder) env(s *stage, c *instructions.EnvCommand, check *linter.Linter) error {
	var created strings.Builder
	created.WriteString("ENV")
	for _, e := range c.Env {
		lint.LegacyKeyValue(c, e, check)
		lint.Secret("ENV", e.Key, c.Location(), check)
		created.WriteString(" " + e.String())
		if err := errors.Join(s.env.Set(e.Key, e.Value), s.config.SetEnv(e.Key, e.Value)); err != nil {
			return err
		}
	}
	s.config.Commit(created.String(), nil)
	return nil
}
