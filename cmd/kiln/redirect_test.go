package main

import (
	"fmt"
	"net"
	"net/http"
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
// host, the second in which way.
func sender(w http.ResponseWriter, r *http.Request) {
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
	default:
		w.WriteHeader(http.StatusNotFound)
	}
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
	listen := func(host string) string {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(sender)}}
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
		sender(w, r)
	}))
	t.Cleanup(proxy.Close)
	inners := []*inner{newInner(t, "127.0.0.1"), newInner(t, kilntest.Private), newInner(t, kilntest.Metadata), newInner(t, kilntest.Metadata6)}

	ways := []struct {
		name  string
		build func(dir, from string, in *inner) *exec.Cmd
	}{
		{"ADD", func(dir, from string, in *inner) *exec.Cmd {
			return build(t, dir, "FROM scratch\nADD http://"+from+"/"+in.path("redirect")+"/f /\n")
		}},
		{"context", func(dir, from string, in *inner) *exec.Cmd {
			return exec.Command("kiln", "build", "http://"+from+"/"+in.path("redirect")+"/c.tar")
		}},
		{"image", func(dir, from string, in *inner) *exec.Cmd {
			return build(t, dir, "FROM "+from+"/"+in.path("redirect")+"/image\n")
		}},
		{"token", func(dir, from string, in *inner) *exec.Cmd {
			return build(t, dir, "FROM "+from+"/"+in.path("realm")+"/image\n")
		}},
		{"push", func(dir, from string, in *inner) *exec.Cmd {
			c := build(t, dir, "FROM scratch\nCOPY Dockerfile /\n")
			c.Args = append(c.Args, "--push", "-t", from+"/"+in.path("upload")+"/image")
			return c
		}},
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
				if asked := forwarded.Load().(string); in.asked.Load() != 0 || !strings.Contains(out, refused) || !strings.Contains(asked, "public.invalid") || strings.Contains(asked, in.addr) {
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

// build returns a build of a Dockerfile in a new directory.
func build(t *testing.T, dir, dockerfile string) *exec.Cmd {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	return exec.Command("kiln", "build", dir)
}
