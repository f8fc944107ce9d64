package confine

import (
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/config"
)

// The limits of the command line come before those of kiln.toml, one by one, and are checked together.
func TestLimits(t *testing.T) {
	configuredLimits, err := configured(config.Limits{Memory: "1g", CPUQuota: 50000, StepTimeout: "5m"})
	if err != nil {
		t.Fatal(err)
	}
	d := Defaults{Request{Limits: configuredLimits}}
	got, err := d.Confine(Request{Limits: Limits{"memory": "512m", "pids-limit": "0"}})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if s := got.Limits; s.Memory != 512<<20 || s.CPUQuota != 50000 || s.Pids != -1 || got.Timeout != 5*time.Minute {
		t.Errorf("%+v", got)
	}
	if _, err := d.Confine(Request{Limits: Limits{"memory-swap": "1m"}}); err == nil {
		t.Error("less memory with swap than memory")
	}
	for name, value := range map[string]string{"memory": "much", "cpu-quota": "1.5", "step-timeout": "-1s", "disk": "1g"} {
		if err := CheckLimit(name, value); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
	if _, err := configured(config.Limits{Memory: "much"}); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("kiln.toml: %v", err)
	}
}

func TestCheckUserns(t *testing.T) {
	for value, ok := range map[string]bool{
		"": true, "auto": true, "host": true, "100000:65536": true,
		"0:65536": false, "1": false, "1:0": false, "a:b": false, "4294967295:2": false, "-1:5": false,
	} {
		if err := CheckUserns(value); (err == nil) != ok {
			t.Errorf("%q: %v", value, err)
		}
	}
}
