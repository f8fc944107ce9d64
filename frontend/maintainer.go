package frontend

import "github.com/moby/buildkit/frontend/dockerfile/instructions"

// maintainer lowers MAINTAINER.
func (b *builder) maintainer(s *stage, c *instructions.MaintainerCommand) {
	s.config.SetAuthor(c.Maintainer)
	s.config.Commit("MAINTAINER "+c.Maintainer, nil)
}
