package frontend

import (
	"errors"
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// volume lowers VOLUME.
func (b *builder) volume(s *stage, c *instructions.VolumeCommand) error {
	if err := s.ownMaps(b.budget); err != nil {
		return err
	}
	for _, v := range c.Volumes {
		if v == "" {
			return errors.New("VOLUME specified can not be an empty string")
		}
		s.add(&s.config.Volumes, v)
	}
	s.commit(fmt.Sprintf("VOLUME %v", c.Volumes), nil)
	return nil
}
