package attrs

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/llb"
)

// What a client asks of the frontend is what build is asked for.
func TestReadDockerfile(t *testing.T) {
	d, err := ReadDockerfile(map[string]string{
		"target": "x", "platform": "linux/amd64,linux/arm64", "no-cache": "a,b", "build-arg:A": "1", "label:l": "v",
		"context:c": "docker-image:debian", "add-hosts": "h=1.2.3.4", "ulimit": "nofile=1:2", "force-network-mode": "none", "hostname": "h",
		"build-arg:BUILDKIT_SANDBOX_HOSTNAME": "arg", "attest:provenance": "mode=max,inline-only=true", "contextkey": "ctx",
		"vcs:revision": "r", "memory": "1000000", "local-sessionid:ctx": "s",
	})
	if err != nil {
		t.Fatal(err)
	}
	if d.Target.Stage != "x" || len(d.Target.Platforms) != 2 || !d.MultiPlatform || d.NoCache ||
		!slices.Equal(d.NoCacheFor, []string{"a", "b"}) ||
		d.Target.Args["A"] != "1" || d.Target.Labels["l"] != "v" || d.Named["c"] != "docker-image://debian" || d.ExtraHosts[0].IP != "1.2.3.4" ||
		d.Ulimits[0].Hard != 2 || d.Request.Network != llb.NetworkNone || d.Target.Args[argHostname] != "arg" || !d.Attest.Provenance.Max ||
		d.VCS["revision"] != "r" || d.Limits["memory"] != "1000000" || d.LocalOf(d.ContextName).Session != "s" {
		t.Errorf("%+v", d)
	}
}

// An attribute that is not known, or whose value is none, is an error of the client's.
func TestUnknown(t *testing.T) {
	for name, value := range map[string]string{
		"platfrom": "linux/amd64", "platform": "amd65/x/y/z", "no-such": "", "shm-size": "big", "ulimit": "x", "add-hosts": "h",
		"multi-platform": "maybe", "image-resolve-mode": "sometimes", "force-network-mode": "wild", "attest:x": "", "memory": "much",
		"cache-imports": "{", "input-metadata:x": "[",
	} {
		if _, err := ReadDockerfile(map[string]string{name: value}); !errors.As(err, new(*input.Error)) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

// FuzzAttributes holds that whatever a client sends is read, or is an error of the client's.
func FuzzAttributes(f *testing.F) {
	f.Add([]byte(`{"platform":"linux/amd64","build-arg:A":"b","attest:provenance":"mode=min"}`), "image",
		[]byte(`{"name":"a,b","push":"true"}`))
	f.Add([]byte(`{"cache-imports":"[{\"Type\":\"registry\",\"Attrs\":{\"ref\":\"x\"}}]","ulimit":"nofile=1"}`), "local",
		[]byte(`{"mode":"delete"}`))
	f.Fuzz(func(t *testing.T, frontend []byte, kind string, output []byte) {
		var all, attrs map[string]string
		_ = json.Unmarshal(frontend, &all)
		_ = json.Unmarshal(output, &attrs)
		if _, err := ReadDockerfile(all); err != nil && !errors.As(err, new(*input.Error)) {
			t.Errorf("%v", err)
		}
		if _, err := Output(kind, attrs, nil, func(string) {}); err != nil && !errors.As(err, new(*input.Error)) {
			t.Errorf("%v", err)
		}
	})
}
