package frontend

import (
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"github.com/kilnbuild/kiln/frontend/lint"
)

// healthcheck lowers HEALTHCHECK.
func (b *builder) healthcheck(s *stage, c *instructions.HealthCheckCommand, check *linter.Linter) {
	lint.UsedOnce(c, &s.checks.healthcheck, check)
	s.config.SetHealthcheck(c.Health)
	s.config.Commit(fmt.Sprintf("HEALTHCHECK %+v", *c.Health), nil)
}
