package imageconfig

import "testing"

func TestIsSignal(t *testing.T) {
	for s, ok := range map[string]bool{
		"SIGTERM": true, "term": true, "9": true, "SIGRTMIN": true, "SIGRTMIN+3": true, "RTMIN+16": false, "RTMAX-14": true,
		"0": false, "": false, "SIG": false, "SIGSIGTERM": false, "RTMIN+": false, "RTMIN+03": false,
	} {
		if IsSignal(s) != ok {
			t.Errorf("IsSignal(%q) = %v", s, !ok)
		}
	}
}
