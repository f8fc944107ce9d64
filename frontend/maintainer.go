package frontend

import "github.com/moby/buildkit/frontend/dockerfile/instructions"

// maintainer lowers MAINTAINER.
func (b *builder) maintainer(s *stage, c *instructions.MaintainerCommand) {
	s.author = c.Maintainer
	s.sized("author", jsonSize(c.Maintainer))
	s.commit("MAINTAINER "+c.Maintainer, nil)
}
