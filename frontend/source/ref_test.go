package source

import (
	"strings"
	"testing"
)

func TestNormalizeRef(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0", 64)
	for in, want := range map[string]string{
		"debian":                        "docker.io/library/debian:latest",
		"debian:bookworm":               "docker.io/library/debian:bookworm",
		"a/b":                           "docker.io/a/b:latest",
		"docker.io/debian":              "docker.io/library/debian:latest",
		"index.docker.io/a/b:c":         "docker.io/a/b:c",
		"localhost/x":                   "localhost/x:latest",
		"localhost:5000/x":              "localhost:5000/x:latest",
		"example.org/x/y:1.0_a-b":       "example.org/x/y:1.0_a-b",
		"debian" + digest:               "docker.io/library/debian" + digest,
		"example.org:443/a:b" + digest:  "example.org:443/a:b" + digest,
		"[2001:db8::1]:5000/a":          "[2001:db8::1]:5000/a:latest",
		"Debian":                        "",
		"":                              "",
		"a//b":                          "",
		"a:":                            "",
		"a:b:c":                         "",
		"a@sha256:12":                   "",
		"-a":                            "",
		"a b":                           "",
		"docker.io/library/a__b---c.d":  "docker.io/library/a__b---c.d:latest",
		"docker.io/library/a___b":       "",
		strings.Repeat("a", 300):        "",
		"x:" + strings.Repeat("a", 129): "",
	} {
		got, err := NormalizeRef(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("NormalizeRef(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}
