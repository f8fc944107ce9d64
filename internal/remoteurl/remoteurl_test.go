package remoteurl

import (
	"strings"
	"testing"
)

func TestParseGit(t *testing.T) {
	hash := strings.Repeat("ab", 20)
	for _, tt := range []struct {
		in   string
		want Git
	}{
		{"https://h/r.git", Git{Remote: "https://h/r.git"}},
		{"https://h:8/a/r.git#v1", Git{Remote: "https://h:8/a/r.git", Ref: "v1"}},
		{"https://h/r.git#:d/e/", Git{Remote: "https://h/r.git", Subdir: "d/e"}},
		{"https://h/r.git#feature/x:/d", Git{Remote: "https://h/r.git", Ref: "feature/x", Subdir: "d"}},
		{"https://u:p%40w@h/r.git", Git{Remote: "https://h/r.git", User: "u:p@w"}},
		{"http://tok@h/r.git?tag=v1", Git{Remote: "http://h/r.git", User: "tok", Ref: "refs/tags/v1"}},
		{"https://h/r.git?branch=main&subdir=d#refs/heads/main", Git{Remote: "https://h/r.git", Ref: "refs/heads/main", Subdir: "d"}},
		{"https://h/r.git?ref=x&commit=abcdef1", Git{Remote: "https://h/r.git", Ref: "x", Checksum: "abcdef1"}},
		{"https://h/r.git?checksum=" + hash + "&fetch-by-commit&mtime=commit", Git{Remote: "https://h/r.git", Checksum: hash, FetchByCommit: true}},
		{"git@h:a/r.git#v1:d", Git{Remote: "git@h:a/r.git", Ref: "v1", Subdir: "d"}},
		{"git@h:r?ref=v1", Git{Remote: "git@h:r", Ref: "v1"}},
		{"ssh://git@h:22/r", Git{Remote: "ssh://git@h:22/r"}},
		{"git://h/r", Git{Remote: "git://h/r"}},
	} {
		if !IsGit(tt.in) {
			t.Errorf("%s is not taken for a repository", tt.in)
		}
		got, err := ParseGit(tt.in)
		if err != nil || *got != tt.want {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", tt.in, got, err, tt.want)
		}
	}
	yes, no := true, false
	s, err := ParseGit("https://h/r.git?keep-git-dir&submodules=0")
	if err != nil || *s.KeepGitDir != yes || *s.Submodules != no {
		t.Errorf("flags: %+v, %v", s, err)
	}
	if s, err := ParseGitContext("github.com/u/r#main"); err != nil || s.Remote != "https://github.com/u/r" || s.Ref != "main" {
		t.Errorf("shorthand: %+v, %v", s, err)
	}
}

func TestParseGitErrors(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"https://h/r.git#main:../../..", "leads out"},
		{"https://h/r.git#main:a/..%2f..", "leads out"},
		{"https://h/r.git?subdir=a/../../b", "leads out"},
		{"https://h/r.git#--upload-pack=x", "not the name of a git ref"},
		{"https://h/r.git?ref=-x", "not the name of a git ref"},
		{"https://h/r.git#a..b", "not the name of a git ref"},
		{"https://h/r.git#a*", "not the name of a git ref"},
		{"https://h/r.git?ref=a%0ab", "not the name of a git ref"},
		{"https://h/r.git?branch=a&tag=b", "a tag and a branch"},
		{"https://h/r.git?ref=a#b", "two refs"},
		{"https://h/r.git?subdir=a#:b", "two directories"},
		{"https://h/r.git?checksum=xyz", "not the hash"},
		{"https://h/r.git?checksum=abcdef", "not the hash"},
		{"https://h/r.git?commit=abcdef1&checksum=abcdef2", "two commits"},
		{"https://h/r.git?fetch-by-commit=1&checksum=abcdef1", "whole hash"},
		{"https://h/r.git?mtime=checkout", "mtime=checkout is not supported"},
		{"https://h/r.git?submodules=maybe", "neither true nor false"},
		{"https://h/r.git?ref=", "no value"},
		{"https://h/r.git?ref=a&ref=b", "more than once"},
		{"https://h/r.git?depth=1", `"depth" is not known`},
		{"ssh://-oProxyCommand=x/y", "begins with a dash"},
		{"ssh://-u@h/y", "begins with a dash"},
		{"git@-h:x", "begins with a dash"},
		{"-u@h:x", "begins with a dash"},
		{"git@h:-x", "begins with a dash"},
		{"ssh://u:canary@h/x", "has a password"},
		{"file:///V", `git over "file"`},
		{"ext::sh -c x", "space or control character"},
		{"git://h", "no host or no path"},
		{"https://u:canary@h:port/r.git", "is not a URL"},
		{"https://h/" + strings.Repeat("x", maxURL) + ".git", "longer than"},
	} {
		_, err := ParseGit(tt.in)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%.100s:\n got %v\nwant %s", tt.in, err, tt.want)
		}
	}
	for _, in := range []string{"r.git", "./r.git", "https://h/r", "https://h/r?x=.git", "http://x.git", "a@b", "dir/a@b:c", "file:///r.git", "C:\\x"} {
		if IsGit(in) {
			t.Errorf("%s is taken for a repository", in)
		}
	}
}

func TestJoin(t *testing.T) {
	for _, tt := range []struct{ remote, address, want string }{
		{"https://h/a/r.git", "../s.git", "https://h/a/s.git"},
		{"https://h/a/r.git", "../../s.git", "https://h/s.git"},
		{"https://h/a/r.git", "./s.git", "https://h/a/r.git/s.git"},
		{"https://h/a/r.git", "../../../s.git", ""},
		{"https://h:1/r.git", "../../2/s.git", ""},
		{"git@h:a/r.git", "../s.git", "git@h:a/s.git"},
		{"git@h:r.git", "../s.git", "git@h:s.git"},
		{"git@h:r.git", "../../s.git", ""},
		{"https://h/r.git", "https://other/s", "https://other/s"},
		{"https://h/r.git", "ssh://git@other/s", "ssh://git@other/s"},
		{"https://h/r.git", "file:///etc", ""},
		{"https://h/r.git", "/etc", ""},
		{"https://h/r.git", "ext::sh", ""},
		{"https://h/r.git", "--upload-pack=x", ""},
		{"https://h/r.git", "https://other/s\r", ""},
	} {
		s, err := (&Git{Remote: tt.remote, User: "u:pw"}).Join(tt.address)
		switch {
		case err != nil && tt.want != "", err == nil && s.Remote != tt.want:
			t.Errorf("%s from %s: got %+v, %v, want %s", tt.address, tt.remote, s, err, tt.want)
		case err == nil && s.User != "" && strings.Contains(tt.address, "://"):
			t.Errorf("%s gets the credentials of %s", tt.address, tt.remote)
		}
	}
}

func TestAccount(t *testing.T) {
	for in, want := range map[string]string{
		"https://Host/r.git": "https://host:443", "http://host/r.git": "http://host:80", "https://u:p@host:8/r.git": "https://host:8",
		"git@host:r.git": "ssh://git@host:22", "ssh://git@HOST/r.git": "ssh://git@host:22", "ssh://host:22/a@b": "ssh://host:22",
		"ssh://root@host:2222/r": "ssh://root@host:2222", "git://host/r": "git://host:9418", "ssh://git@[::1]/r": "ssh://git@[::1]:22",
	} {
		s, err := ParseGitRemote(in)
		if err != nil || s.Account() != want {
			t.Errorf("%s is at %q, %v, want %q", in, s.Account(), err, want)
		}
	}
}

func TestHTTP(t *testing.T) {
	h, err := ParseHTTP("https://u:p@h/x?y=z#f")
	if err != nil || h.URL != "https://h/x?y=z" || h.User != "u:p" {
		t.Errorf("got %+v, %v", h, err)
	}
	if got := Shown("https://u:p@h/x?y=z#f"); got != "https://xxxxx@h/x?…" {
		t.Errorf("shown as %s", got)
	}
	for in, want := range map[string]string{
		"https://u:p@h/x@y": "https://xxxxx@h/x@y", "https://h/x@y": "https://h/x@y", "git@h:x": "git@h:x", "a b": "a b",
		"ssh://git@h/x": "ssh://git@h/x", "http://a@b@h": "http://xxxxx@h",
	} {
		if got := WithoutUser(in); got != want {
			t.Errorf("%s without user is %s, want %s", in, got, want)
		}
	}
	for _, in := range []string{"https://", "ftp://h/x", "http:///x", "https://u:canary@h:p/x"} {
		if _, err := ParseHTTP(in); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// FuzzGit holds that what is accepted can be handed to git: no option, no way out of the repository, no credentials.
func FuzzGit(f *testing.F) {
	for _, seed := range []string{
		"https://u:p@h/r.git?tag=v1&subdir=a#refs/tags/v1:a", "git@h:a/r.git#v1:d", "ssh://git@h:22/r?keep-git-dir", "git://h/r#-x",
		"https://h/r.git#:..%2f", "-u@h:x", "github.com/u/r#a:b",
	} {
		f.Add(seed, "../x.git")
	}
	f.Fuzz(func(t *testing.T, in, submodule string) {
		WithoutUser(in)
		Shown(in)
		s, err := ParseGitContext(in)
		if err != nil {
			return
		}
		bad := strings.HasPrefix(s.Ref, "-") || strings.HasPrefix(s.Remote, "-") || strings.HasPrefix(s.Subdir, "/") || strings.ContainsAny(s.Ref+s.Remote, "\n\x00 ")
		for part := range strings.SplitSeq(s.Subdir, "/") {
			bad = bad || part == ".."
		}
		switch s.Scheme() {
		case "http", "https":
			bad = bad || strings.Contains(strings.SplitN(s.Remote, "/", 4)[2], "@")
		case "ssh", "git":
		default:
			bad = true
		}
		if bad {
			t.Errorf("%q is read as %+v", in, s)
		}
		again, err := ParseGitRemote(s.Remote)
		if err != nil || again.Remote != s.Remote {
			t.Errorf("%q is read as %q, and that as %+v, %v", in, s.Remote, again, err)
		}
		if sub, err := s.Join(submodule); err == nil && (strings.HasPrefix(sub.Remote, "-") || sub.Scheme() == "file" || sub.User != "" && sub.User != s.User && !strings.Contains(submodule, "@")) {
			t.Errorf("submodule %q of %q is %+v", submodule, s.Remote, sub)
		}
	})
}
