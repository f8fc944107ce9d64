package suggest

import "testing"

func TestNearest(t *testing.T) {
	modes := []string{"auto", "plain", "tty", "rawjson", "quiet", "none"}
	for _, tc := range []struct {
		name  string
		known []string
		want  string
	}{
		{"plian", modes, "plain"},
		{"PLAIN", modes, "plain"},
		{"raw", modes, "rawjson"},
		{"json", modes, ""},
		{"tyt", modes, "tty"},
		{"x", modes, ""},
		{"", modes, ""},
		{"hst", []string{"default", "host", "none"}, "host"},
		{"regsitry", []string{"image", "registry"}, "registry"},
		{"gzp", []string{"uncompressed", "gzip", "zstd"}, "gzip"},
		{"zip", []string{"image", "registry", "docker", "oci", "local", "tar", "cacheonly"}, ""},
		{"ba", []string{"ab", "ba"}, "ba"},
	} {
		if got := Nearest(tc.name, tc.known...); got != tc.want {
			t.Errorf("Nearest(%q, %q) = %q, want %q", tc.name, tc.known, got, tc.want)
		}
	}
}

func TestHint(t *testing.T) {
	if got := Hint("hst", "host"); got != "; did you mean host?" {
		t.Error(got)
	}
	if got := Hint("host", "host"); got != "" {
		t.Error(got)
	}
}

func TestDistance(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"ab", "ba", 1}, {"abcd", "acbd", 1}, {"kitten", "sitting", 3}, {"plian", "plain", 1}} {
		if got := distance(tc.a, tc.b); got != tc.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tc.a, tc.b, got, tc.want)
		}
		if got := distance(tc.b, tc.a); got != tc.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tc.b, tc.a, got, tc.want)
		}
	}
}
