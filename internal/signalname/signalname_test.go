package signalname

import (
	"syscall"
	"testing"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]syscall.Signal{
		"TERM": syscall.SIGTERM, "sigquit": syscall.SIGQUIT, "9": syscall.SIGKILL, "RTMIN": 34, "SIGRTMIN+3": 37, "rtmax-1": 63, "64": 64,
		"": 0, "0": 0, "65": 0, "-1": 0, "RTMIN+40": 0, "NO": 0, "RTMINx": 0,
	} {
		if got, err := Parse(s); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
}
