package frontend

import "github.com/moby/buildkit/frontend/dockerfile/instructions"

// user lowers USER. Who that is shows where something is done as the user.
func (b *builder) user(s *stage, c *instructions.UserCommand) {
	s.config.User = c.User
	s.sized("user", jsonSize(c.User))
	s.commit("USER "+c.User, nil)
}
