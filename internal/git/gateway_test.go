package git

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// secrets returns a Client that has them.
func secrets(t *testing.T, values map[string]string) *Client {
	c := newClient(t)
	c.secret = func(_ context.Context, id string) ([]byte, bool, error) {
		v, ok := values[id]
		return []byte(v), ok, nil
	}
	return c
}

// TestAuthorization looks at who gets a repository's credentials: its own server, and not where that redirects; and neither git nor
// whoever looks at its arguments.
func TestAuthorization(t *testing.T) {
	r, other := newRemote(t), newRemote(t)
	r.commit("r.git", map[string]string{"a": "x"})
	other.commit("r.git", map[string]string{"a": "other"})
	var asked, leaked atomic.Int32
	private := func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Authorization") != "Basic eC1hY2Nlc3MtdG9rZW46Y2FuYXJ5" {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		asked.Add(1)
		return false
	}
	r.handle = private
	other.handle = func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Authorization")+req.Header.Get(keyHeader) != "" {
			leaked.Add(1)
		}
		return false
	}
	// A git that says what it was given.
	git, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	bin, log := t.TempDir(), filepath.Join(t.TempDir(), "log")
	script := fmt.Sprintf("#!/bin/sh\n{ env; echo \"$@\"; } >>%s\nexec %s \"$@\"\n", log, git)
	if err := os.WriteFile(filepath.Join(bin, "git"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("https_proxy", "http://u:canary@127.0.0.1:1")

	token := map[string]string{"GIT_AUTH_TOKEN." + strings.TrimPrefix(r.url, "http://"): "canary"}
	got, err := exported(t, secrets(t, token), r.source("r.git"), Options{})
	if err != nil || !slices.Contains(got, "f 644 a x") || asked.Load() < 3 {
		t.Errorf("got %q, %v, after %d requests", got, err, asked.Load())
	}
	// A redirection on the same server has them still.
	if got, err = exported(t, secrets(t, token), r.source("moved/r.git"), Options{}); err != nil || !slices.Contains(got, "f 644 a x") {
		t.Errorf("on the same server: got %q, %v", got, err)
	}
	_, err = exported(t, newClient(t), r.source("r.git"), Options{})
	const advice = "answered 401 Unauthorized (if the repository is private, give --secret id=GIT_AUTH_TOKEN.127.0.0.1:"
	if err == nil || !strings.Contains(err.Error(), advice) {
		t.Errorf("without: %v", err)
	}
	r.handle = func(w http.ResponseWriter, req *http.Request) bool {
		http.Redirect(w, req, other.url+req.URL.RequestURI(), http.StatusMovedPermanently)
		return true
	}
	got, err = exported(t, secrets(t, token), r.source("r.git"), Options{})
	if err != nil || !slices.Contains(got, "f 644 a other") || leaked.Load() != 0 {
		t.Errorf("at another server: got %q, %v, and %d requests with what is not for it", got, err, leaked.Load())
	}
	said, err := os.ReadFile(log)
	if err != nil || strings.Contains(string(said), "canary") || strings.Contains(string(said), "Y2FuYXJ5") ||
		!strings.Contains(string(said), "fetch") {
		t.Errorf("git was given, %v:\n%s", err, said)
	}
}

// TestGatewayKey holds that no other user of the machine can fetch with the credentials of this one.
func TestGatewayKey(t *testing.T) {
	r := newRemote(t)
	r.commit("r.git", map[string]string{"a": "x"})
	s, err := remoteurl.ParseGit(r.url + "/r.git")
	if err != nil {
		t.Fatal(err)
	}
	g, err := serve(t.Context(), s, "", fetch.NewTransports(nil).Way(reach.Anywhere), fetch.Usual())
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	for _, tt := range []struct {
		key  string
		want int
	}{{"", http.StatusForbidden}, {g.key[1:], http.StatusForbidden}, {g.key, http.StatusOK}} {
		req, err := http.NewRequest(http.MethodGet, g.address+"info/refs?service=git-upload-pack", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(keyHeader, tt.key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("with key %q: %s", tt.key, resp.Status)
		}
	}
}

// TestFaults has servers that fail for a while, break off, or redirect to what is no repository.
func TestFaults(t *testing.T) {
	r := newRemote(t)
	r.commit("r.git", map[string]string{"a": strings.Repeat("x", 1<<20)})
	var n atomic.Int32
	const idle = 500 * time.Millisecond
	for name, tt := range map[string]struct {
		handle func(w http.ResponseWriter, req *http.Request) bool
		want   string // of the error; "" for success
	}{
		"503 twice": {func(w http.ResponseWriter, req *http.Request) bool {
			if n.Add(1) > 2 {
				return false
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}, ""},
		"breaks off once": {func(w http.ResponseWriter, req *http.Request) bool {
			if req.Method != http.MethodPost || n.Add(1) != 2 {
				return false
			}
			w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
			w.Header().Set("Content-Length", "10000")
			w.Write([]byte("0010"))
			panic(http.ErrAbortHandler)
		}, ""},
		"slow first byte": {func(w http.ResponseWriter, req *http.Request) bool {
			time.Sleep(4 * idle)
			return false
		}, ""},
		"silent in the body": {func(w http.ResponseWriter, req *http.Request) bool {
			w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			w.Write([]byte("001e# service=git-upload-pack\n"))
			w.(http.Flusher).Flush()
			<-req.Context().Done()
			return true
		}, "the server fell silent"},
		"503":           {func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true }, " answered 503 Service Unavailable"},
		"404":           {func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(404); return true }, "answered 404 Not Found (check the address)"},
		"no repository": {func(w http.ResponseWriter, _ *http.Request) bool { w.Write([]byte("hello")); return true }, "/r.git"},
		"redirected POST": {func(w http.ResponseWriter, req *http.Request) bool {
			if req.Method == http.MethodPost {
				http.Redirect(w, req, "/other", http.StatusFound)
			}
			return req.Method == http.MethodPost
		}, "redirects what is sent to it"},
		"elsewhere": {func(w http.ResponseWriter, req *http.Request) bool {
			if req.URL.Path != "/hello" {
				http.Redirect(w, req, "/hello", http.StatusFound)
			}
			return true
		}, "where there is no repository"},
		"for ever": {func(w http.ResponseWriter, req *http.Request) bool {
			http.Redirect(w, req, req.URL.RequestURI(), http.StatusFound)
			return true
		}, "redirects more than 10 times"},
	} {
		t.Run(name, func(t *testing.T) {
			n.Store(0)
			r.handle = tt.handle
			c := newClient(t)
			if strings.HasPrefix(name, "s") {
				c.patience.Idle = idle
			}
			got, err := exported(t, c, r.source("r.git"), Options{})
			if tt.want == "" && (err != nil || len(got) != 2) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) ||
				strings.Contains(strings.ReplaceAll(err.Error(), r.url, ""), "http://127.0.0.1")) {
				t.Errorf("got %.100q, %v", got, err)
			}
		})
	}
}
