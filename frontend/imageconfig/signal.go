package imageconfig

import (
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// IsSignal reports whether s is a number or the name of a Linux signal, with or without SIG, in any case.
func IsSignal(s string) bool {
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
