package imagename

import (
	"strings"
	"testing"
)

const sum = "@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"debian":                                 "docker.io/library/debian:latest",
		"user/app:1":                             "docker.io/user/app:1",
		"index.docker.io/debian":                 "docker.io/library/debian:latest",
		"registry-1.docker.io/user/app":          "docker.io/user/app:latest",
		"localhost/x":                            "localhost/x:latest",
		"LOCAL/x":                                "LOCAL/x:latest",
		"127.0.0.1:5000/x":                       "127.0.0.1:5000/x:latest",
		"[::1]:5000/app":                         "[::1]:5000/app:latest",
		"[::1]/app:v1":                           "[::1]/app:v1",
		"[2001:db8::1]:5000/a/b:c" + sum:         "[2001:db8::1]:5000/a/b:c" + sum,
		"a" + sum:                                "docker.io/library/a" + sum,
		"a.b-c__d":                               "docker.io/library/a.b-c__d:latest",
		"a.-b":                                   "",
		"a..b":                                   "",
		"a___b":                                  "",
		"a/../b":                                 "",
		"A/B":                                    "",
		"h:99999/a":                              "",
		"h:/a":                                   "",
		"h-/a":                                   "",
		"-h.x/a":                                 "",
		"[::1]":                                  "",
		"[::1/a":                                 "",
		"[fe80::1%eth0]:5000/a":                  "",
		"a:-b":                                   "",
		"a@sha256:12":                            "",
		"a@md5:d41d8cd98f00b204e9800998ecf8427e": "",
		strings.Repeat("0", 64):                  "",
		strings.Repeat("0", 63):                  "docker.io/library/" + strings.Repeat("0", 63) + ":latest",
		"sha256:f266d068b4be":                    "",
		"sha256:" + strings.Repeat("0", 64):      "",
		"sha256":                                 "",
		"sha256" + sum:                           "",
		"docker.io/library/sha256:1":             "",
		"index.docker.io/sha256:1":               "",
		"h.x/sha256:1":                           "h.x/sha256:1",
		"user/sha256:1":                          "docker.io/user/sha256:1",
		"h.x/" + strings.Repeat("a", 256):        "",
		"":                                       "",
	} {
		n, err := Parse(in)
		if err != nil {
			if want != "" {
				t.Errorf("%q: %v", in, err)
			}
			continue
		}
		if n.String() != want {
			t.Errorf("%q is %q, want %q", in, n, want)
		}
		again, err := Parse(n.Familiar())
		if err != nil || again.Name() != n.Name() || again.Digest != n.Digest {
			t.Errorf("%q is %q in short and then %q, %v", in, n.Familiar(), again, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("docker.io/library/debian:12")
	f.Add("[::1]:5000/a" + sum)
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(n.String())
		if err != nil || again != n {
			t.Errorf("%q = %+v, and %q = %+v, %v", s, n, n, again, err)
		}
		if strings.Contains("/"+n.Repository+"/", "/../") || strings.ContainsAny(n.String(), "\n \x00%?#") {
			t.Errorf("%q leads elsewhere", n)
		}
	})
}
