package frontend

import (
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// healthcheck lowers HEALTHCHECK.
func (b *builder) healthcheck(s *stage, c *instructions.HealthCheckCommand, lint *linter.Linter) {
	lintUsedOnce(c, &s.healthcheck, lint)
	s.config.Healthcheck = c.Health
	s.sizedList("healthcheck", c.Health.Test)
	s.commit(fmt.Sprintf("HEALTHCHECK %+v", *c.Health), nil)
}
