package main

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/registry/registrytest"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestImages runs the stories of testdata/images, about commands for images:
//
//	$PRIVATE   a registry whose user "user" has the password "secret"
//	$OPEN      a registry that asks for no password
//	$SECURE    the same by https, with the certificate $CA that nobody knows
//	$COUNTED   the same, where each request is a line of $WORK/requests: method and path
func TestImages(t *testing.T) {
	private, open := registrytest.StartWithUser(t, "user", "secret"), registrytest.Start(t)
	secure := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: open.Host}))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // of those who do not know the certificate
	secure.StartTLS()
	t.Cleanup(secure.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	stories(t, testscript.Params{Dir: "testdata/images"}, func(env *testscript.Env) error {
		env.Setenv("PRIVATE", private.Host)
		env.Setenv("OPEN", open.Host)
		env.Setenv("SECURE", strings.TrimPrefix(secure.URL, "https://"))
		env.Setenv("CA", ca)
		env.Setenv("COUNTED", counted(env, open.Host))
		return nil
	})
}

// counted starts a proxy of a registry that writes down what it is asked, and returns its name.
func counted(env *testscript.Env, registry string) string {
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: registry})
		r.Out.Host = r.In.Host // so that uploads go on here
	}}
	var mu sync.Mutex
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		f, err := os.OpenFile(filepath.Join(env.WorkDir, "requests"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
		if err == nil {
			fmt.Fprintln(f, r.Method, r.URL.Path)
			f.Close()
		}
		mu.Unlock()
		proxy.ServeHTTP(w, r)
	}))
	env.Defer(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}
