package llb

import "testing"

func TestPlaceString(t *testing.T) {
	for want, p := range map[string]Place{
		"":                          {},
		"[2/5] ":                    {Stage: "stage-0", Stages: 1, Step: 2, Steps: 5, Platform: "linux/amd64", Platforms: 1},
		"[build  2/12] ":            {Stage: "build", Stages: 2, Step: 2, Steps: 12, Platform: "linux/amd64", Platforms: 1},
		"[linux/amd64 2/5] ":        {Stage: "stage-0", Stages: 1, Step: 2, Steps: 5, Platform: "linux/amd64", Target: "linux/arm64", Platforms: 2},
		"[linux/amd64->arm64 2/5] ": {Stages: 1, Step: 2, Steps: 5, Platform: "linux/amd64", Target: "linux/arm64", Platforms: 2, Cross: true},
		"[linux/amd64->windows/amd64 build 2/5] ": {
			Stage: "build", Stages: 2, Step: 2, Steps: 5, Platform: "linux/amd64", Target: "windows/amd64", Platforms: 2, Cross: true,
		},
		"[internal] ":             {Group: "internal", Stage: "build", Stages: 2, Step: 2, Steps: 5},
		"[linux/arm64 internal] ": {Group: "internal", Platform: "linux/arm64", Platforms: 2},
		"[context base] ":         {Group: "context base"},
	} {
		if got := p.String(); got != want {
			t.Errorf("%+v: %q, want %q", p, got, want)
		}
	}
	if got := (Meta{Place: Place{Step: 1, Steps: 1}, Text: "RUN make"}).Name(); got != "[1/1] RUN make" {
		t.Errorf("Name() = %q", got)
	}
}
