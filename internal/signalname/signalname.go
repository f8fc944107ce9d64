// Package signalname reads the names of signals.
package signalname

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/termtext"
)

// The first and the last real-time signal, as Docker counts them.
const (
	firstRealTime = 34
	lastRealTime  = 64
)

// Parse reads a signal as STOPSIGNAL of a Dockerfile has it: a number, or a name with or without SIG in any case.
func Parse(s string) (syscall.Signal, error) {
	unknown := fmt.Errorf("there is no signal %s", termtext.List([]string{s}))
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > lastRealTime {
			return 0, unknown
		}
		return syscall.Signal(n), nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	for base, from := range map[string]int{"SIGRTMIN": firstRealTime, "SIGRTMAX": lastRealTime} {
		rest, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		n := 0
		if rest != "" {
			var err error
			if n, err = strconv.Atoi(rest); err != nil {
				return 0, unknown
			}
		}
		if n += from; n >= firstRealTime && n <= lastRealTime {
			return syscall.Signal(n), nil
		}
	}
	return 0, unknown
}
