package frontend

import (
	"errors"
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// volume lowers VOLUME.
func (b *builder) volume(s *stage, c *instructions.VolumeCommand) error {
	if s.config.Volumes == nil {
		s.config.Volumes = map[string]struct{}{}
	}
	for _, v := range c.Volumes {
		if v == "" {
			return errors.New("VOLUME specified can not be an empty string")
		}
		s.config.Volumes[v] = struct{}{}
	}
	s.commit(fmt.Sprintf("VOLUME %v", c.Volumes), nil)
	return nil
}
