package git

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// remote is a directory of repositories that is served over http.
type remote struct {
	t   *testing.T
	dir string
	url string
	// handle answers a request, or reports that it does not; nil is for none.
	handle func(w http.ResponseWriter, r *http.Request) bool
}

func newRemote(t *testing.T) *remote {
	r := &remote{t: t, dir: t.TempDir()}
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatalf("%v: install git", err)
	}
	h := cgi.Handler{Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if to, ok := strings.CutPrefix(req.URL.Path, "/moved/"); ok {
			http.Redirect(w, req, r.url+"/"+to+"?"+req.URL.RawQuery, http.StatusFound)
			return
		}
		if r.handle != nil && r.handle(w, req) {
			return
		}
		h := h
		h.Env = []string{"GIT_PROJECT_ROOT=" + r.dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_PROTOCOL=" + req.Header.Get("Git-Protocol"),
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}
		h.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	r.url = srv.URL
	return r
}

// git runs git in a repository and returns what it prints.
func (r *remote) git(repository, stdin string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", append([]string{"-C", filepath.Join(r.dir, repository)}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@t", "GIT_COMMITTER_NAME=t",
		"GIT_COMMITTER_EMAIL=t@t", "GIT_COMMITTER_DATE=1000000000 +0100")
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit makes a commit on main of files, symbolic links ("->target"), programs ("!") and submodules ("@hash").
func (r *remote) commit(repository string, files map[string]string, format ...string) string {
	r.t.Helper()
	if _, err := os.Stat(filepath.Join(r.dir, repository)); err != nil {
		r.git(".", "", append([]string{"init", "-q", "--bare", "--initial-branch=main"}, append(format, repository)...)...)
	}
	index := filepath.Join(r.t.TempDir(), "index")
	r.t.Setenv("GIT_INDEX_FILE", index)
	defer os.Unsetenv("GIT_INDEX_FILE")
	for name, content := range files {
		mode := "100644"
		switch {
		case strings.HasPrefix(content, "@"):
			r.git(repository, "", "update-index", "--add", "--cacheinfo", "160000,"+content[1:]+","+name)
			continue
		case strings.HasPrefix(content, "->"):
			mode, content = "120000", content[2:]
		case strings.HasPrefix(content, "!"):
			mode = "100755"
		}
		r.git(repository, "", "update-index", "--add", "--cacheinfo", mode+","+r.git(repository, content, "hash-object", "-w", "--stdin")+","+name)
	}
	id := r.git(repository, "", "commit-tree", "-m", "x", r.git(repository, "", "write-tree"))
	r.git(repository, "", "update-ref", "refs/heads/main", id)
	return id
}

func (r *remote) source(s string) *remoteurl.Git {
	r.t.Helper()
	g, err := remoteurl.ParseGit(r.url + "/" + s)
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}

func newClient(t *testing.T) *Client {
	c := New(filepath.Join(t.TempDir(), "git"), t.TempDir(), func(context.Context, string) ([]byte, bool, error) { return nil, false, nil })
	c.patience.Pause = time.Millisecond
	return c
}

// exported resolves and exports a source, and returns its entries as "type mode path content".
func exported(t *testing.T, c *Client, s *remoteurl.Git, o Options) ([]string, error) {
	t.Helper()
	commit, err := c.Resolve(context.Background(), s, Identity{})
	if err != nil {
		return nil, err
	}
	o.Log = io.Discard
	var out []string
	err = c.Export(context.Background(), s, commit, o, func(e layer.Entry, body io.Reader) error {
		if e.UID != 0 || e.GID != 0 || e.ModTime.Unix() != 1000000000 {
			t.Errorf("%s is of %d:%d and %s", e.Path, e.UID, e.GID, e.ModTime)
		}
		what := e.Link
		if e.Type == layer.File {
			data, err := io.ReadAll(body)
			if err != nil {
				return err
			}
			what = string(data)
		}
		if strings.HasPrefix(e.Path, ".git/") {
			what = ""
		}
		out = append(out, strings.TrimSpace(string(e.Type)+" "+map[uint32]string{0o644: "644", 0o755: "755", 0o777: "777"}[e.Mode]+" "+e.Path+" "+what))
		return nil
	})
	slices.Sort(out)
	return out, err
}

func TestExport(t *testing.T) {
	r := newRemote(t)
	sub := r.commit("sub.git", map[string]string{"s": "sub"})
	outer := r.commit("outer.git", map[string]string{"in": "@" + sub, ".gitmodules": "[submodule \"x\"]\n\tpath = in\n\turl = ../sub.git\n"})
	deep := r.commit("deep.git", map[string]string{"sub/deep": "x"})
	first := r.commit("r.git", map[string]string{
		"a": "one", "run": "!x", "d/e/f": "deep", "link": "->/etc", "lf": "a\n", "keep": "k",
		".gitattributes": "keep export-ignore\na export-subst\nrun filter=evil diff=evil\n",
		"dir/of":         "@" + deep, "m": "@" + outer, "gone": "@" + sub, ".gitmodules": "[submodule \"m\"]\n\tpath = m\n\turl = ./../outer.git\n[submodule \"d\"]\n\tpath = dir/of\n\turl = ../deep.git\n",
	})
	r.git("r.git", "", "tag", "-a", "-m", "x", "v1", first)
	tag := r.git("r.git", "", "rev-parse", "v1")
	second := r.commit("r.git", map[string]string{"a": "two"})
	r.git("r.git", "", "tag", "light")
	r.git("r.git", "", "update-ref", "refs/pull/1/head", second)

	all := []string{"d 755", "d 755 d", "d 755 d/e", "d 755 dir", "d 755 dir/of", "d 755 dir/of", "d 755 dir/of/sub", "d 755 gone", "d 755 m", "d 755 m", "d 755 m/in", "d 755 m/in",
		"f 644 .gitattributes keep export-ignore\na export-subst\nrun filter=evil diff=evil", "f 644 .gitmodules [submodule \"m\"]\n\tpath = m\n\turl = ./../outer.git\n[submodule \"d\"]\n\tpath = dir/of\n\turl = ../deep.git",
		"f 644 a one", "f 644 d/e/f deep", "f 644 dir/of/sub/deep x", "f 644 keep k", "f 644 lf a", "f 644 m/.gitmodules [submodule \"x\"]\n\tpath = in\n\turl = ../sub.git", "f 644 m/in/s sub",
		"f 755 run !x", "l 777 link /etc"}
	c := newClient(t)
	two := []string{"d 755", "f 644 a two"}
	for _, tt := range []struct {
		source string
		want   []string
	}{
		{"r.git#v1", all}, {"r.git#refs/tags/v1", all}, {"r.git#" + first, all}, {"r.git#" + tag, all}, {"r.git?checksum=" + tag[:9] + "#v1", all},
		{"r.git?fetch-by-commit&checksum=" + first + "#main", all},
		{"r.git", two}, {"r.git#main", two}, {"r.git#light", two}, {"r.git#pull/1/head", two}, {"r.git?commit=" + second[:7], two},
		{"r.git#v1:d/e", []string{"d 755", "f 644 f deep"}},
		{"moved/r.git", two},
		// A submodule, one in it, and a directory of that.
		{"r.git#v1:m", []string{"d 755", "d 755 in", "d 755 in", "f 644 .gitmodules [submodule \"x\"]\n\tpath = in\n\turl = ../sub.git", "f 644 in/s sub"}},
		{"r.git#v1:m/in", []string{"d 755", "f 644 s sub"}},
		{"r.git#v1:dir/of/sub", []string{"d 755", "f 644 deep x"}},
	} {
		got, err := exported(t, c, r.source(tt.source), Options{})
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s:\n got %q, %v\nwant %q", tt.source, got, err, tt.want)
		}
	}
	got, err := exported(t, c, r.source("r.git#v1"), Options{SkipSubmodules: true})
	if err != nil || slices.Contains(got, "f 644 m/in/s sub") || !slices.Contains(got, "d 755 m") {
		t.Errorf("without submodules: %q, %v", got, err)
	}
	if got, err := exported(t, c, r.source("r.git#v1:m/in"), Options{SkipSubmodules: true}); err == nil {
		t.Errorf("a directory of a submodule without submodules: %q", got)
	}
	got, err = exported(t, c, r.source("r.git#v1"), Options{KeepGitDir: true, SkipSubmodules: true})
	for _, want := range []string{"d 755 .git", "f 644 .git/HEAD", "f 644 .git/index", "f 644 .git/config", "f 644 .git/shallow", "f 644 .git/refs/tags/v1"} {
		if err != nil || !slices.Contains(got, want) {
			t.Errorf("with .git: %q is not in %q, %v", want, got, err)
		}
	}
	// The mirror is only a cache: what a killed process left, and its absence, do no harm.
	mirrors, err := filepath.Glob(filepath.Join(c.dir, "*", "HEAD"))
	if err != nil || len(mirrors) != 5 { // of the address with a redirection too
		t.Fatalf("%d mirrors, %v", len(mirrors), err)
	}
	third := r.commit("r.git", map[string]string{"a": "three"})
	for _, m := range mirrors {
		for _, name := range []string{"shallow.lock", "config.lock", "objects/pack/tmp_pack_x"} {
			if err := os.WriteFile(filepath.Join(filepath.Dir(m), name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, err := exported(t, c, r.source("r.git"), Options{}); err != nil || !slices.Contains(got, "f 644 a three") {
		t.Errorf("after a crash: %q, %v (%s)", got, err, third)
	}
}

// A submodule may be another commit of the repository that it is in, or of one of which that is a submodule: nothing waits for itself.
func TestOwnSubmodule(t *testing.T) {
	r := newRemote(t)
	module := func(repository string) string {
		return "[submodule \"m\"]\n\tpath = m\n\turl = ../" + repository + "\n"
	}
	first := r.commit("a.git", map[string]string{"a": "first"})
	b := r.commit("b.git", map[string]string{"m": "@" + first, ".gitmodules": module("a.git")})
	r.commit("a.git", map[string]string{"m": "@" + b, ".gitmodules": module("b.git")})
	self := r.commit("c.git", map[string]string{"a": "first"})
	r.commit("c.git", map[string]string{"m": "@" + self, ".gitmodules": module("c.git")})
	for source, want := range map[string]string{"a.git": "f 644 m/m/a first", "c.git": "f 644 m/a first"} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			got, err := exported(t, newClient(t), r.source(source), Options{})
			if err != nil || !slices.Contains(got, want) {
				t.Errorf("%s: %q, %v", source, got, err)
			}
		}()
		select {
		case <-done:
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s: it waits for a lock of its own", source)
		}
	}
}

func TestSHA256(t *testing.T) {
	r := newRemote(t)
	id := r.commit("r.git", map[string]string{"a": "x"}, "--object-format=sha256")
	for _, ref := range []string{"", "#" + id} {
		if got, err := exported(t, newClient(t), r.source("r.git"+ref), Options{KeepGitDir: true}); err != nil || !slices.Contains(got, "f 644 a x") {
			t.Errorf("%q: %q, %v", ref, got, err)
		}
	}
}

// TestRefused fetches from servers that give out nothing but what refs name, and that know no shallow fetching.
func TestRefused(t *testing.T) {
	r := newRemote(t)
	old := r.commit("r.git", map[string]string{"a": "old"})
	next := r.git("r.git", "", "commit-tree", "-m", "y", "-p", old, r.git("r.git", "", "rev-parse", old+"^{tree}"))
	r.git("r.git", "", "update-ref", "refs/heads/main", next)
	c := newClient(t)
	for _, ref := range []string{old, "main"} {
		if got, err := exported(t, c, r.source("r.git#"+ref), Options{}); err != nil || !slices.Contains(got, "f 644 a old") {
			t.Errorf("%s: %q, %v", ref, got, err)
		}
	}
	_, err := exported(t, c, r.source("r.git#"+strings.Repeat("ab", 20)), Options{})
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("a commit that is not there: %v", err)
	}
}

func TestHostile(t *testing.T) {
	r := newRemote(t)
	marker := filepath.Join(t.TempDir(), "marker")
	module := func(url string) map[string]string {
		return map[string]string{"m": "@" + strings.Repeat("ab", 20), ".gitmodules": "[submodule \"m\"]\n\tpath = m\n\turl = \"" + url + "\"\n\tupdate = !touch " + marker + "\n"}
	}
	r.commit("file.git", module("file://"+r.dir+"/file.git"))
	r.commit("path.git", module(r.dir+"/file.git"))
	r.commit("ext.git", module("ext::touch% "+marker))
	r.commit("dash.git", module("-u./payload"))
	r.commit("cr.git", module("../file.git\r"))
	r.commit("broken.git", map[string]string{"m": "@" + strings.Repeat("ab", 20), ".gitmodules": "[submodule"})
	r.commit("out.git", module("../../../x.git"))
	r.commit("link.git", map[string]string{"proj": "->/", "a": "x"})
	for _, tt := range []struct{ source, want string }{
		{"file.git", `git over "file" is not supported`},
		{"path.git", "is not"},
		{"ext.git", "space or control character|is not"},
		{"dash.git", "is not"},
		{"cr.git", "control character"},
		{"out.git", "leads out of"},
		{"broken.git", "read .gitmodules of"},
		{"link.git#main:proj", "is not a directory of commit"},
		{"link.git#main:proj/etc", "is not a directory of commit"},
		{"link.git#main:a", "is not a directory of commit"},
		{"broken.git#main:m", "read .gitmodules of"},
		{"file.git#main:m/x", `git over "file" is not supported`},
		{"link.git#nosuch", `there is no branch, tag or other ref "nosuch"`},
		{"link.git?checksum=1234567", "and the checksum says 1234567"},
		{"nosuch.git", "(check the address)"},
	} {
		_, err := exported(t, newClient(t), r.source(tt.source), Options{})
		ok := false
		for want := range strings.SplitSeq(tt.want, "|") {
			ok = ok || err != nil && strings.Contains(err.Error(), want)
		}
		if !ok {
			t.Errorf("%s: got %v, want %s", tt.source, err, tt.want)
		}
	}
	// A commit that has .git as a directory, in any spelling.
	blob := r.git("link.git", "x", "hash-object", "-w", "--stdin")
	for _, name := range []string{".git", ".GIT"} {
		dir := r.git("link.git", "100644 blob "+blob+"\tconfig\n", "mktree")
		id := r.git("link.git", "", "commit-tree", "-m", "x", r.git("link.git", "040000 tree "+dir+"\t"+name+"\n", "mktree"))
		r.git("link.git", "", "update-ref", "refs/heads/dot", id)
		if _, err := exported(t, newClient(t), r.source("link.git#dot"), Options{}); err == nil {
			t.Errorf("a commit with %s is taken", name)
		}
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("a repository had something run")
	}
}

// TestConfiguration has a user's configuration that would change what git does.
func TestConfiguration(t *testing.T) {
	r := newRemote(t)
	r.commit("r.git", map[string]string{"a": "x"})
	home := t.TempDir()
	config := "[url \"file:///nosuch/\"]\n\tinsteadOf = " + r.url + "\n[core]\n\tsshCommand = false\n\tpager = false\n"
	if err := os.WriteFile(filepath.Join(home, ".gitconfig"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"HOME": home, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "url.file:///nosuch/.insteadOf", "GIT_CONFIG_VALUE_0": r.url,
		"GIT_DIR": "/nosuch", "GIT_ALLOW_PROTOCOL": "file", "GIT_EXTERNAL_DIFF": "false", "GIT_PROXY_COMMAND": "false",
	} {
		t.Setenv(name, value)
	}
	if got, err := exported(t, newClient(t), r.source("r.git"), Options{}); err != nil || !slices.Contains(got, "f 644 a x") {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestEnvironment looks at what git is started with.
func TestEnvironment(t *testing.T) {
	t.Setenv("SSH_AUTH_SOCK", "/agent")
	c := New(t.TempDir(), t.TempDir(), func(_ context.Context, id string) ([]byte, bool, error) {
		return []byte("canary\n"), id == "GIT_AUTH_TOKEN.h:8" || id == "GIT_AUTH_HEADER", nil
	})
	for _, tt := range []struct {
		address string
		named   bool
		want    string
	}{
		{"https://h:8/r.git", false, "Basic eC1hY2Nlc3MtdG9rZW46Y2FuYXJ5"},
		{"https://other/r.git", true, "canary"},
		{"https://other/r.git", false, ""},
		{"http://h:8/r.git", true, "Basic eC1hY2Nlc3MtdG9rZW46Y2FuYXJ5"},
		{"http://h:8/r.git", false, ""},
		{"https://u:pw@h:8/r.git", true, "Basic dTpwdw=="},
		{"ssh://git@h:8/r.git", true, ""},
	} {
		s, err := remoteurl.ParseGit(tt.address)
		if err != nil {
			t.Fatal(err)
		}
		auth, err := c.authorization(t.Context(), s, tt.named, Identity{})
		if err != nil || auth != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.address, auth, err, tt.want)
		}
		env := strings.Join(c.environment(call{source: s, authorization: auth, protocol: s.Scheme()}), "\n")
		if !strings.Contains(env, "GIT_ALLOW_PROTOCOL="+s.Scheme()) || strings.Contains(env, "/agent") || !strings.Contains(env, "StrictHostKeyChecking=yes") ||
			!strings.Contains(env, "IdentityAgent=none' '-o' 'IdentitiesOnly=yes") || !strings.Contains(env, "IdentityFile=none") || auth != "" && strings.Contains(env, auth) {
			t.Errorf("%s: environment\n%s", tt.address, env)
		}
	}
	s, _ := remoteurl.ParseGit("git@h:r")
	if env := c.environment(call{source: s, identity: Identity{User: true}}); !slices.Contains(env, "SSH_AUTH_SOCK=/agent") {
		t.Error("a context's repository has no agent")
	}
	env := c.environment(call{source: s, identity: Identity{Socket: "/lent"}})
	if all := strings.Join(env, "\n"); !slices.Contains(env, "SSH_AUTH_SOCK=/lent") || strings.Contains(all, "IdentityAgent=none") || !strings.Contains(all, "IdentityFile=none") {
		t.Errorf("the agent of a build: %q", env)
	}
}

func TestMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	s, _ := remoteurl.ParseGit("https://h/r.git")
	_, err := newClient(t).Resolve(context.Background(), s, Identity{})
	if m := (*MissingError)(nil); !errors.As(err, &m) || !strings.Contains(err.Error(), "install the package git") {
		t.Errorf("got %v", err)
	}
}

// TestTogether has many clients that fetch the same repository at once, and one that is stopped.
func TestTogether(t *testing.T) {
	r := newRemote(t)
	id := r.commit("r.git", map[string]string{"a": "x"})
	c := newClient(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got, err := exported(t, c, r.source("r.git#"+id), Options{}); err != nil || !slices.Contains(got, "f 644 a x") {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hang := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}))
	defer hang.Close()
	s, _ := remoteurl.ParseGit(hang.URL + "/r.git")
	if _, err := c.Resolve(ctx, s, Identity{}); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
}

func TestSaid(t *testing.T) {
	said := &tail{timer: time.NewTimer(time.Hour)}
	said.Write(bytes.Repeat([]byte("Receiving objects:  10% (1/10)\r"), 1000))
	said.Write([]byte("\nfatal: no such\r\nfatal: Could not read from remote repository.\n\nPlease make sure you have the correct access rights\nand the repository exists.\n"))
	if got := said.line(); got != "no such" {
		t.Errorf("got %q", got)
	}
}

func TestReceived(t *testing.T) {
	for said, want := range map[string]int64{
		"remote: Counting objects: 100% (3/3), done.\n": -1,
		"Receiving objects:  45% (45/100)\r":            -1,
		"Receiving objects:   4% (4/100), 512 bytes | 1.00 KiB/s\rReceiving objects:  45% (45/100), 1.50 KiB | 9 KiB": 1536,
		"Receiving objects: 100% (100/100), 2.25 MiB | 2.00 MiB/s, done.\n":                                           2.25 * (1 << 20),
		"Receiving objects: 100% (100/100), 1.00 GiB | 2.00 MiB/s, done.\nResolving deltas: 100% (1/1), done.\n":      1 << 30,
		"Receiving objects: 1%, 1.1.1 MiB": -1,
	} {
		if n, ok := received([]byte(said)); ok != (want >= 0) || ok && n != want {
			t.Errorf("%q: %d, %v", said, n, ok)
		}
	}
}
