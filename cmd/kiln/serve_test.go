package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/cache/remote/gha/ghatest"
	"github.com/rogpeppe/go-internal/testscript"
)

// cmdServe is "serve DIR": it serves the directory over http at $URL, with ETags, and the git repositories in it that end in
// .git. What is below private/ needs the token "canary" as bearer or as the password of basic authentication;
// /redirect/ADDRESS redirects there. Each request is a line of the file requests: method, path and status.
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: serve DIR")
	}
	dir, log := ts.MkAbs(args[0]), ts.MkAbs("requests")
	out, err := exec.Command("git", "--exec-path").Output()
	ts.Check(err)
	git := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	var mu sync.Mutex
	handle := func(w http.ResponseWriter, r *http.Request) {
		if to, ok := strings.CutPrefix(r.URL.Path, "/redirect/"); ok {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		if strings.HasPrefix(r.URL.Path, "/private/") {
			_, pw, _ := r.BasicAuth()
			if pw != "canary" && r.Header.Get("Authorization") != "Bearer canary" {
				w.Header().Set("WWW-Authenticate", "Basic")
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
		}
		if strings.Contains(r.URL.Path, ".git/") {
			h := *git
			h.Env = append(h.Env[:len(h.Env):len(h.Env)], "GIT_PROTOCOL="+r.Header.Get("Git-Protocol"))
			h.ServeHTTP(w, r)
			return
		}
		if data, err := os.ReadFile(filepath.Join(dir, filepath.Clean(r.URL.Path))); err == nil {
			w.Header().Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(data)))
		}
		http.FileServer(http.Dir(dir)).ServeHTTP(w, r)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		handle(rec, r)
		mu.Lock()
		defer mu.Unlock()
		f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
		if err == nil {
			fmt.Fprintln(f, r.Method, r.URL.Path, rec.status)
			f.Close()
		}
	}))
	ts.Defer(srv.Close)
	ts.Setenv("URL", srv.URL)
	ts.Setenv("HOST", strings.TrimPrefix(srv.URL, "http://"))
}

// cmdGitHub is "github": it starts a server of GitHub's cache for Actions, and sets what a job knows of it. ACTIONS_RUNTIME_TOKEN is that of a
// job on the default branch, as is MAIN_TOKEN; BRANCH_TOKEN and FORK_TOKEN are those of jobs on another branch, and for a fork.
func cmdGitHub(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: github")
	}
	s := ghatest.New()
	ts.Defer(s.Close)
	ts.Setenv("ACTIONS_RESULTS_URL", s.URL)
	ts.Setenv("ACTIONS_RUNTIME_TOKEN", ghatest.Token)
	ts.Setenv("MAIN_TOKEN", ghatest.Token)
	ts.Setenv("BRANCH_TOKEN", ghatest.BranchToken)
	ts.Setenv("FORK_TOKEN", ghatest.ReadToken)
}

type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}
