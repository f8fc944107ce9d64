package frontend

import "github.com/moby/buildkit/frontend/dockerfile/instructions"

// user lowers USER. Who that is shows where something is done as the user.
func (b *builder) user(s *stage, c *instructions.UserCommand) {
	s.config.SetUser(c.User)
	s.config.Commit("USER "+c.User, nil)
}
