package sources

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/internal/sourcepolicy"
	"github.com/kilnbuild/kiln/llb"
)

// policy returns the sources of a build with one rule, which converts.
func policy(t *testing.T, from, to, attrs string) *Sources {
	t.Helper()
	rule := fmt.Sprintf(`{"action":"CONVERT","selector":{"identifier":%q,"match_type":"EXACT"},"updates":{"identifier":%q,"attrs":{%s}}}`,
		from, to, attrs)
	p, err := sourcepolicy.Parse("p.json", []byte(`{"rules":[`+rule+`]}`))
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{Pins: Pins{Policy: p}})
}

const (
	hash   = "0123456789012345678901234567890123456789"
	debian = "docker-image://docker.io/library/debian:bookworm"
)

// TestAdmit converts sources by their identifiers, which are those of BuildKit.
func TestAdmit(t *testing.T) {
	image := llb.Image{Ref: "docker.io/library/debian:bookworm"}
	file := llb.HTTP{URL: "https://h/f?x=1", User: "u:p", Filename: "f"}
	repo := llb.Git{Remote: "ssh://git@h:22/team/r.git", Ref: "v1", Subdir: "a/b", KeepGitDir: true}
	for _, test := range []struct {
		op              llb.Op
		from, to, attrs string
		want            llb.Op
		err             string
	}{
		{op: image, from: debian, to: "docker-image://mirror/debian", want: llb.Image{Ref: "docker.io/mirror/debian:latest"}},
		{op: image, from: debian, to: "docker-image://UPPER", err: "lower case"},
		{op: image, from: debian, to: "oci-layout://x", err: "an image can only become another docker-image://"},
		{
			op: image, from: debian, attrs: `"image.resolvemode":"pull"`,
			err: "rule 1 changes " + debian + ": the attribute image.resolvemode cannot be set",
		},
		{
			op: llb.Image{Ref: "latest", Layout: "/l"}, from: "oci-layout:///l:latest", to: "docker-image://x",
			err: "an image of an OCI layout cannot be converted",
		},
		{op: llb.Local{Name: "context"}, from: "local://context", to: "local://other", err: "a directory of this machine cannot be converted"},
		// Credentials stay with their server.
		{op: file, from: "https://h/f?x=1", to: "https://h/g", want: llb.HTTP{URL: "https://h/g", User: "u:p", Filename: "f"}},
		{op: file, from: "https://h/f?x=1", to: "http://h/g", want: llb.HTTP{URL: "http://h/g", Filename: "f"}},
		{op: file, from: "https://h/f?x=1", to: "https://other/g", want: llb.HTTP{URL: "https://other/g", Filename: "f"}},
		{op: file, from: "https://h/f?x=1", attrs: `"http.checksum":"md5:00"`, err: `http.checksum="md5:00" is not a digest`},
		{op: file, from: "https://h/f?x=1", to: "https://h/r.git", err: "a file can only become another https:// or http://"},
		{
			op: repo, from: "git://h:22/team/r.git#v1:a/b", to: "git://h:22/team/r.git#v2", attrs: `"git.keepgitdir":"","git.skipsubmodules":"true"`,
			want: llb.Git{Remote: repo.Remote, Ref: "v2", SkipSubmodules: true},
		},
		{
			op: repo, from: "git://h:22/team/r.git#v1:a/b", attrs: `"git.checksum":"` + hash + `","git.fetchbycommit":"true"`,
			want: llb.Git{Remote: repo.Remote, Ref: "v1", Subdir: "a/b", KeepGitDir: true, Checksum: hash, FetchByCommit: true},
		},
		{
			op: repo, from: "git://h:22/team/r.git#v1:a/b", to: "git://m/r.git#v1", attrs: `"git.fullurl":"https://m/r.git"`,
			want: llb.Git{Remote: "https://m/r.git", Ref: "v1", KeepGitDir: true},
		},
		{op: repo, from: "git://h:22/team/r.git#v1:a/b", to: "git://m/r.git#v1", err: "the rule has to set git.fullurl"},
		{op: repo, from: "git://h:22/team/r.git#v1:a/b", attrs: `"git.fetchbycommit":"true"`, err: "git.fetchbycommit needs the whole hash"},
		{op: repo, from: "git://h:22/team/r.git#v1:a/b", attrs: `"git.mtime":"commit"`, err: "the attribute git.mtime cannot be set; there are"},
		// What no rule is about is the same as before.
		{op: repo, from: "git://h/team/r.git#v1:a/b", to: "git://x", want: repo},
	} {
		got, err := policy(t, test.from, test.to, test.attrs).Admit(test.op)
		if test.err != "" {
			failed, ok := errors.AsType[*PolicyError](err)
			if !ok || failed.Rule != 1 || !strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), "p.json") {
				t.Errorf("%v to %s: error %v, want %s", test.op, test.to, err, test.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%v to %s: %+v, %v, want %+v", test.op, test.to, got, err, test.want)
		}
	}
}

// TestLocked gives sources their digests, by the names that they have after the policy.
func TestLocked(t *testing.T) {
	sum, other := "sha256:"+strings.Repeat("0", 64), "sha256:"+strings.Repeat("1", 64)
	yes := true
	s := New(Config{Pins: Pins{Locked: &yes}})
	object := strings.Repeat("f", 40)
	text := "kiln-lock 1\ngit https://h/r.git#v1 sha1:" + hash + " refs/tags/v1 sha1:" + object + "\n" +
		"http https://h/f " + sum + "\nimage docker.io/library/debian:bookworm " + sum + "\n"
	if err := s.ReadLock(contexts.LockFile{Name: "l", Data: []byte(text), Exists: true}); err != nil {
		t.Fatal(err)
	}
	long := "sha512:" + strings.Repeat("0", 128)
	locked := llb.Git{Remote: "https://h/r.git", Ref: "v1", Checksum: hash, FetchByCommit: true, FoundBy: "refs/tags/v1", Object: object}
	of := func(g llb.Git, checksum string) llb.Git {
		g.Checksum, g.FetchByCommit, g.FoundBy, g.Object = checksum, false, "", ""
		return g
	}
	for _, test := range []struct {
		op, want llb.Op
		err      string
	}{
		{op: llb.Image{Ref: "docker.io/library/debian:bookworm"}, want: llb.Image{Ref: "docker.io/library/debian:bookworm", Digest: sum}},
		{op: llb.Image{Ref: "docker.io/library/debian:latest"}, err: "docker.io/library/debian:latest is not in l"},
		{op: llb.Image{Ref: "latest", Layout: "/l"}, want: llb.Image{Ref: "latest", Layout: "/l"}},
		{op: llb.HTTP{URL: "https://h/f"}, want: llb.HTTP{URL: "https://h/f", Checksum: sum}},
		{op: llb.HTTP{URL: "https://h/f", Checksum: long}, want: llb.HTTP{URL: "https://h/f", Checksum: long}},
		{op: llb.HTTP{URL: "https://h/f", Checksum: other}, err: "l has " + sum + " for https://h/f, and the checksum says " + other},
		{op: llb.HTTP{URL: "https://h/g?signature=x"}, err: "https://h/g?… is not in l"},
		{op: of(locked, ""), want: locked},
		{op: of(locked, hash[:9]), want: locked},
		{op: of(locked, object[:9]), want: locked},
		{op: of(locked, "abcdef0"), err: "the checksum says abcdef0"},
		{op: llb.Git{Remote: "https://h/r.git"}, err: "https://h/r.git is not in l"},
	} {
		got, err := s.Source("x", test.op)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%v: error %v, want %s", test.op, err, test.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%v: %+v, %v, want %+v", test.op, got, err, test.want)
		}
	}
}
