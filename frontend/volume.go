package frontend

import (
	"errors"
	"fmt"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// volume lowers VOLUME.
func (b *builder) volume(s *stage, c *instructions.VolumeCommand) error {
	if slices.Contains(c.Volumes, "") {
		return errors.New("VOLUME specified can not be an empty string")
	}
	if err := s.config.AddVolumes(c.Volumes); err != nil {
		return err
	}
	s.config.Commit(fmt.Sprintf("VOLUME %v", c.Volumes), nil)
	return nil
}
