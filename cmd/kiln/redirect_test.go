package main

import (
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kilnbuild/kiln/internal/kilntest"
)

// inner is a server that no other may send kiln to. It counts connections and answers none.
type inner struct {
	addr  string // "host:port"
	asked atomic.Int32
}

func newInner(t *testing.T, host string) *inner {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	in := &inner{addr: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			in.asked.Add(1)
			c.Close()
		}
	}()
	return in
}

// sender is a server that sends its clients elsewhere, in the ways that the protocols have: the first part of a path says to which
// host, the second in which way. It has the git repositories of a directory.
type sender struct{ repositories string }

func (s sender) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.URL.Path = strings.TrimPrefix(r.URL.Path, "/v2")
	parts := strings.SplitN(r.URL.Path, "/", 4)
	if len(parts) < 4 {
		return
	}
	host, port, _ := strings.Cut(strings.ReplaceAll(parts[1], "_", ":"), "-")
	to := "http://" + net.JoinHostPort(host, port)
	switch {
	case parts[2] == "redirect":
		http.Redirect(w, r, to+"/"+parts[3]+"?"+r.URL.RawQuery, http.StatusTemporaryRedirect)
	case parts[2] == "realm":
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", to+"/token"))
		w.WriteHeader(http.StatusUnauthorized)
	case parts[2] == "upload" && strings.Contains(parts[3], "blobs/uploads"):
		w.Header().Set("Location", to+"/upload")
		w.WriteHeader(http.StatusAccepted)
	case parts[2] == "git" && strings.HasSuffix(parts[3], "/objects/batch"):
		_, id, _ := strings.Cut(pointer, "sha256:")
		id, _, _ = strings.Cut(id, "\n")
		fmt.Fprintf(w, `{"objects": [{"oid": %q, "size": 3, "actions": {"download": {"href": %q}}}]}`, id, to+"/object")
	case parts[2] == "git":
		h := cgi.Handler{Path: "/usr/bin/git", Args: []string{"http-backend"}, Env: []string{
			"GIT_PROJECT_ROOT=" + s.repositories, "GIT_HTTP_EXPORT_ALL=1", "GIT_PROTOCOL=" + r.Header.Get("Git-Protocol"),
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		}}
		h.ServeHTTP(w, r)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// pointer is one of git-lfs to a file that holds "one".
const pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed\nsize 3\n"

// repository makes a repository with files, and with a submodule m at the address unless that is "".
func repository(t *testing.T, dir, submodule string, files map[string]string) {
	t.Helper()
	git := func(stdin string, args ...string) string {
		c := exec.Command("git", append([]string{"--git-dir=" + dir}, args...)...)
		c.Env = append(os.Environ(), "HOME="+dir, "GIT_INDEX_FILE="+dir+"/new",
			"GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@t", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@t")
		c.Stdin = strings.NewReader(stdin)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("git %q: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("", "init", "-q", "--bare", "--initial-branch=main", dir)
	if submodule != "" {
		files[".gitmodules"] = "[submodule \"m\"]\n\tpath = m\n\turl = " + submodule + "\n"
		git("", "update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("ab", 20)+",m")
	}
	for name, text := range files {
		git("", "update-index", "--add", "--cacheinfo", "100644,"+git(text, "hash-object", "-w", "--stdin")+","+name)
	}
	git("", "update-ref", "refs/heads/main", git("", "commit-tree", "-m", "x", git("", "write-tree")))
}

// path returns the beginning of a path at which the sender sends to in.
func (in *inner) path(way string) string {
	host, port, _ := net.SplitHostPort(in.addr)
	return strings.ReplaceAll(host, ":", "_") + "-" + port + "/" + way
}

// TestRedirects has servers on the internet that send kiln to addresses that they cannot reach themselves, with and without a proxy
// between. No connection may be made there. Where the server is on the same network, it is.
func TestRedirects(t *testing.T) {
	if !kilntest.Network(t) {
		return
	}
	sends := sender{t.TempDir()}
	listen := func(host string) string {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: sends}}
		srv.Start()
		t.Cleanup(srv.Close)
		return l.Addr().String()
	}
	outer, near := listen(kilntest.Internet), listen("127.0.0.1")
	var forwarded atomic.Value // hosts that the proxy was asked for
	forwarded.Store("")
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		forwarded.Store(forwarded.Load().(string) + " " + r.Host)
		if r.Method == http.MethodConnect || r.URL.Hostname() != "public.invalid" {
			http.Error(w, "not here", http.StatusBadGateway)
			return
		}
		sends.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	inners := []*inner{newInner(t, "127.0.0.1"), newInner(t, kilntest.Metadata)}

	type way struct {
		name  string
		build func(dir, from string, in *inner) *exec.Cmd
	}
	ways := []way{
		{"ADD", func(dir, from string, in *inner) *exec.Cmd {
			return buildOf(t, dir, "FROM scratch\nADD http://"+from+"/"+in.path("redirect")+"/f /\n")
		}},
		{"context", func(dir, from string, in *inner) *exec.Cmd {
			return exec.Command("kiln", "build", "http://"+from+"/"+in.path("redirect")+"/c.tar")
		}},
		{"image", func(dir, from string, in *inner) *exec.Cmd {
			return buildOf(t, dir, "FROM "+from+"/"+in.path("redirect")+"/image\n")
		}},
		{"token", func(dir, from string, in *inner) *exec.Cmd {
			return buildOf(t, dir, "FROM "+from+"/"+in.path("realm")+"/image\n")
		}},
		{"push", func(dir, from string, in *inner) *exec.Cmd {
			c := buildOf(t, dir, "FROM scratch\nCOPY Dockerfile /\n")
			c.Args = append(c.Args, "--push", "-t", from+"/"+in.path("upload")+"/image")
			return c
		}},
		{"git", func(dir, from string, in *inner) *exec.Cmd {
			return buildOf(t, dir, "FROM scratch\nADD http://"+from+"/"+in.path("redirect")+"/r.git /\n")
		}},
		{"git context", func(dir, from string, in *inner) *exec.Cmd {
			return exec.Command("kiln", "build", "http://"+from+"/"+in.path("redirect")+"/r.git")
		}},
		{"git-lfs", func(dir, from string, in *inner) *exec.Cmd {
			at := in.path("git") + "/" + filepath.Base(filepath.Dir(dir)) + filepath.Base(dir) + ".git"
			repository(t, filepath.Join(sends.repositories, at), "", map[string]string{".gitattributes": "f filter=lfs\n", "f": pointer})
			return buildOf(t, dir, "FROM scratch\nADD http://"+from+"/"+at+" /\n")
		}},
	}
	for name, add := range map[string]string{"file": "http://%s/f", "repository": "http://%s/r.git", "git": "git://%s/r.git", "ssh": "ssh://git@%s/r.git"} {
		ways = append(ways, way{"Dockerfile of a context, " + name, func(dir, from string, in *inner) *exec.Cmd {
			at := in.path("git") + "/" + filepath.Base(filepath.Dir(dir)) + filepath.Base(dir) + ".git"
			repository(t, filepath.Join(sends.repositories, at), "", map[string]string{"Dockerfile": "FROM scratch\nADD " + fmt.Sprintf(add, in.addr) + " /\n"})
			return exec.Command("kiln", "build", "http://"+from+"/"+at)
		}})
	}
	for _, scheme := range []string{"http", "git", "ssh"} {
		ways = append(ways, way{"submodule over " + scheme, func(dir, from string, in *inner) *exec.Cmd {
			at := in.path("git") + "/" + filepath.Base(filepath.Dir(dir)) + filepath.Base(dir) + ".git"
			repository(t, filepath.Join(sends.repositories, at), scheme+"://"+in.addr+"/r.git", map[string]string{"f": "x"})
			return buildOf(t, dir, "FROM scratch\nADD http://"+from+"/"+at+" /\n")
		}})
	}
	run := func(t *testing.T, c *exec.Cmd, env ...string) string {
		dir := t.TempDir()
		config := filepath.Join(dir, "kiln.toml")
		if err := os.WriteFile(config, []byte("[registry.\""+outer+"\"]\nhttp = true\n[registry.\"public.invalid\"]\nhttp = true\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Env = append(os.Environ(), "KILN_ROOT="+filepath.Join(dir, "root"), "KILN_CONFIG="+config, "DOCKER_CONFIG="+dir, "HOME="+dir)
		c.Env = append(c.Env, env...)
		out, err := c.CombinedOutput()
		if err == nil {
			t.Errorf("it is built:\n%s", out)
		}
		return string(out)
	}
	const refused = "a server outside of that network may not send kiln there"
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			for _, in := range inners {
				if out := run(t, way.build(t.TempDir(), outer, in)); in.asked.Load() != 0 || !strings.Contains(out, refused) {
					t.Errorf("from the internet to %s: %d connections\n%s", in.addr, in.asked.Load(), out)
				}
				forwarded.Store("")
				out := run(t, way.build(t.TempDir(), "public.invalid", in), "http_proxy="+proxy.URL)
				asked := forwarded.Load().(string)
				if in.asked.Load() != 0 || !strings.Contains(out, refused) || !strings.Contains(asked, "public.invalid") || strings.Contains(asked, in.addr) {
					t.Errorf("by a proxy to %s: %d connections, by the proxy to%s\n%s", in.addr, in.asked.Load(), asked, out)
				}
				in.asked.Store(0)
			}
			local := newInner(t, "127.0.0.1")
			if out := run(t, way.build(t.TempDir(), near, local)); local.asked.Load() == 0 {
				t.Errorf("from this machine to itself: no connection\n%s", out)
			}
		})
	}
}

// buildOf returns a build of a Dockerfile in a new directory.
func buildOf(t *testing.T, dir, dockerfile string) *exec.Cmd {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.Command("kiln", "build", dir)
}

// TestGitOverTLS fetches a repository and an object of git-lfs by https, with and without the certificate, and where the server redirects
// to plain http.
func TestGitOverTLS(t *testing.T) {
	repositories := t.TempDir()
	repository(t, filepath.Join(repositories, "x-1/git/r.git"), "", map[string]string{".gitattributes": "f filter=lfs\n", "f": pointer, "a": "a"})
	var srv *httptest.Server
	srv = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/objects/batch"):
			_, id, _ := strings.Cut(pointer, "sha256:")
			id, _, _ = strings.Cut(id, "\n")
			fmt.Fprintf(w, `{"objects": [{"oid": %q, "size": 3, "actions": {"download": {"href": %q}}}]}`, id, srv.URL+"/object")
		case r.URL.Path == "/object":
			fmt.Fprint(w, "one")
		case strings.HasPrefix(r.URL.Path, "/down/"):
			http.Redirect(w, r, "http://"+r.Host+strings.TrimPrefix(r.URL.Path, "/down")+"?"+r.URL.RawQuery, http.StatusMovedPermanently)
		default:
			sender{repositories}.ServeHTTP(w, r)
		}
	}))
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, ca, path, want string }{
		{"trusted", ca, "/x-1/git/r.git", ""},
		{"unknown", "/dev/null", "/x-1/git/r.git", "failed to verify certificate"},
		{"down", ca, "/down/x-1/git/r.git", "plain http is refused after https"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			out := filepath.Join(dir, "out")
			c := buildOf(t, dir, "FROM scratch\nADD "+srv.URL+tt.path+" /\n")
			c.Args = append(c.Args, "-o", out)
			c.Env = append(os.Environ(), "KILN_ROOT="+filepath.Join(dir, "root"), "KILN_CONFIG=/dev/null", "SSL_CERT_FILE="+tt.ca, "SSL_CERT_DIR="+dir)
			said, err := c.CombinedOutput()
			if tt.want != "" {
				if err == nil || !strings.Contains(string(said), tt.want) {
					t.Errorf("got %v, want %s\n%s", err, tt.want, said)
				}
				return
			}
			f, fErr := os.ReadFile(filepath.Join(out, "f"))
			a, aErr := os.ReadFile(filepath.Join(out, "a"))
			if err != nil || fErr != nil || aErr != nil || string(f) != "one" || string(a) != "a" {
				t.Errorf("%v, %v, %v: %q and %q\n%s", err, fErr, aErr, f, a, said)
			}
		})
	}
}
