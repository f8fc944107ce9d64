package frontend

import (
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// healthcheck lowers HEALTHCHECK.
func (b *builder) healthcheck(s *stage, c *instructions.HealthCheckCommand, lint *linter.Linter) {
	lintUsedOnce(c, &s.checks.healthcheck, lint)
	s.config.SetHealthcheck(c.Health)
	s.config.Commit(fmt.Sprintf("HEALTHCHECK %+v", *c.Health), nil)
}
