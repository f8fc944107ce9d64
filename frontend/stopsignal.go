package frontend

import (
	"fmt"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/kilnbuild/kiln/frontend/imageconfig"
)

// stopSignal lowers STOPSIGNAL.
func (b *builder) stopSignal(s *stage, c *instructions.StopSignalCommand) error {
	if !imageconfig.IsSignal(c.Signal) {
		return fmt.Errorf("invalid signal %q: it has to be a name such as SIGTERM, or a number above 0", c.Signal)
	}
	s.config.SetStopSignal(c.Signal)
	s.config.Commit("STOPSIGNAL "+c.Signal, nil)
	return nil
}
