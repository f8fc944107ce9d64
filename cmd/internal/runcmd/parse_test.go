package runcmd

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/run"
)

func TestParsePort(t *testing.T) {
	for value, want := range map[string]string{
		"80": "127.0.0.1:0:80/tcp", "8080:80": "127.0.0.1:8080:80/tcp", ":80": "127.0.0.1:0:80/tcp", "53:53/udp": "127.0.0.1:53:53/udp",
		"0.0.0.0:8080:80/TCP": "0.0.0.0:8080:80/tcp", "192.0.2.1::80": "192.0.2.1:0:80/tcp", "[::1]:8080:80": "[::1]:8080:80/tcp", "0:1": "127.0.0.1:0:1/tcp",
		"": "", "0": "", "80:": "", "80:0": "", "65536:80": "", "a:b": "", "8000-8010:80": "", "80/sctp": "", "host:1:2": "", "1:2:3:4": "", "[fe80::1%a]:1:2": "", "-1:80": "",
	} {
		p, err := parsePort(value)
		if err == nil && p.String() != want || (err == nil) != (want != "") {
			t.Errorf("%q: %s, %v", value, p, err)
		}
	}
}

func TestParseVolumes(t *testing.T) {
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		parse func(string) (run.Volume, error)
		value string
		want  run.Volume // zero for an error
	}{
		{parseVolume, "/a:/b", run.Volume{Kind: run.Bind, Source: "/a", Target: "/b"}},
		{parseVolume, "./a/../c:/b:ro", run.Volume{Kind: run.Bind, Source: here + "/c", Target: "/b", ReadOnly: true}},
		{parseVolume, ".:/b:rw", run.Volume{Kind: run.Bind, Source: here, Target: "/b"}},
		{parseVolume, "/b", run.Volume{Target: "/b"}},
		{parseVolume, "a:/b", run.Volume{}}, {parseVolume, "a", run.Volume{}}, {parseVolume, "", run.Volume{}}, {parseVolume, "/a:", run.Volume{}},
		{parseVolume, ":/b", run.Volume{}}, {parseVolume, "/a:b", run.Volume{}}, {parseVolume, "/a:/", run.Volume{}}, {parseVolume, "/a:/b:Z", run.Volume{}},
		{parseVolume, "/a:/b:ro:x", run.Volume{}}, {parseVolume, "/..", run.Volume{}},
		{parseTmpfs, "/t", run.Volume{Kind: run.Tmpfs, Target: "/t"}},
		{parseTmpfs, "/t:size=1m,rw", run.Volume{Kind: run.Tmpfs, Target: "/t", Size: 1 << 20}},
		{parseTmpfs, "/t:mode=755", run.Volume{}}, {parseTmpfs, "/t:size=0", run.Volume{}}, {parseTmpfs, "t", run.Volume{}},
		{parseMount, "type=bind,src=/a,dst=/b,readonly", run.Volume{Kind: run.Bind, Source: "/a", Target: "/b", ReadOnly: true}},
		{parseMount, `type=bind,"source=/a,b",target=/b,ro=false`, run.Volume{Kind: run.Bind, Source: "/a,b", Target: "/b"}},
		{parseMount, "type=bind,src=a,dst=/b", run.Volume{Kind: run.Bind, Source: here + "/a", Target: "/b"}},
		{parseMount, "type=tmpfs,destination=/t,tmpfs-size=1k", run.Volume{Kind: run.Tmpfs, Target: "/t", Size: 1024}},
		{parseMount, "dst=/v", run.Volume{Target: "/v"}},
		{parseMount, "src=named,dst=/v", run.Volume{}}, {parseMount, "type=npipe,dst=/v", run.Volume{}}, {parseMount, "type=tmpfs,src=/a,dst=/v", run.Volume{}},
		{parseMount, "type=bind,dst=/v", run.Volume{}}, {parseMount, "type=bind,src=/a", run.Volume{}}, {parseMount, "dst=/v,volume-opt=x", run.Volume{}},
		{parseMount, "dst=/v,tmpfs-size=1k", run.Volume{}},
	} {
		got, err := tc.parse(tc.value)
		if err == nil && got != tc.want || (err == nil) != (tc.want != run.Volume{}) {
			t.Errorf("%q: %+v, %v", tc.value, got, err)
		}
	}
}

func TestParseEnvFile(t *testing.T) {
	t.Setenv("KNOWN", "here")
	env, err := parseEnvFile([]byte("\ufeffA=1\n# B=2\n\n  C=\"3\" # x\nKNOWN\nUNKNOWN_TO_ALL\nD=\r\nE==\n"))
	if want := []string{"A=1", `C="3" # x`, "KNOWN=here", "D=", "E=="}; !slices.Equal(env, want) || err != nil {
		t.Errorf("%q, %v", env, err)
	}
	for _, text := range []string{"=1", "A B=1", "A=\x00", "A=\xff"} {
		if env, err := parseEnvFile([]byte("OK=1\n" + text)); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %q, %v", text, env, err)
		}
	}
}

// FuzzParse finds values that make a reader of flags panic, or accept a target that is no absolute path below the root.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"127.0.0.1:80:80/udp", "/a:/b:ro", "type=bind,src=/a,dst=/b", "/t:size=1m", "A=1\n#\nB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := parsePort(s); err == nil && (p.Inside == 0 || !p.Host.IsValid()) {
			t.Errorf("%q is the port %v", s, p)
		}
		for _, parse := range []func(string) (run.Volume, error){parseVolume, parseMount, parseTmpfs} {
			v, err := parse(s)
			if err == nil && (!filepath.IsAbs(v.Target) || filepath.Clean(v.Target) == "/" || v.Kind == run.Bind && !filepath.IsAbs(v.Source)) {
				t.Errorf("%q is the volume %+v", s, v)
			}
		}
		env, err := parseEnvFile([]byte(s))
		for _, v := range env {
			if err == nil && (!strings.Contains(v, "=") || v[0] == '=') {
				t.Errorf("%q has the variable %q", s, v)
			}
		}
	})
}
