package frontend

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sys/unix"
)

// stopSignal lowers STOPSIGNAL.
func (b *builder) stopSignal(s *stage, c *instructions.StopSignalCommand) error {
	if !isSignal(c.Signal) {
		return fmt.Errorf("invalid signal %q: it has to be a name such as SIGTERM, or a number above 0", c.Signal)
	}
	s.config.SetStopSignal(c.Signal)
	s.config.Commit("STOPSIGNAL "+c.Signal, nil)
	return nil
}

// isSignal says whether s is a number or the name of a Linux signal, with or without SIG, in any case.
func isSignal(s string) bool {
	if n, err := strconv.Atoi(s); err == nil {
		return n != 0
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if unix.SignalNum("SIG"+name) != 0 || slices.Contains([]string{"RTMIN", "RTMAX", "IOT", "CLD", "POLL"}, name) {
		return true
	}
	// As many as kill(1) has names for.
	if n, ok := strings.CutPrefix(name, "RTMIN+"); ok {
		return between(n, 1, 15)
	}
	if n, ok := strings.CutPrefix(name, "RTMAX-"); ok {
		return between(n, 1, 14)
	}
	return false
}

func between(s string, low, high int) bool {
	n, err := strconv.Atoi(s)
	return err == nil && strconv.Itoa(n) == s && low <= n && n <= high
}
