package main

import (
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/registry/registrytest"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestImages runs the stories of testdata/images, about commands for images:
//
//	$PRIVATE   a registry whose user "user" has the password "secret"
//	$OPEN      a registry that asks for no password
//	$SECURE    the same by https, with the certificate $CA that nobody knows
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
		return nil
	})
}
