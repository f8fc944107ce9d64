package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/registry/registrytest"
)

// TestCerts has a registry that wants a client certificate, both of whose authorities only its directory of certificates has. Another
// server that it sends kiln to is trusted by its own directory, and gets no client certificate.
func TestCerts(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 1000)
	if err := New(nil).Push(t.Context(), from, reg.Host+"/app", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: reg.Host})
	serve := func(auth tls.ClientAuthType, h http.HandlerFunc) (*httptest.Server, string) {
		srv := httptest.NewUnstartedServer(h)
		srv.TLS = &tls.Config{ClientAuth: auth}
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv, strings.TrimPrefix(srv.URL, "https://")
	}
	shown := 0
	blobs, blobHost := serve(tls.RequestClientCert, func(w http.ResponseWriter, r *http.Request) {
		shown += len(r.TLS.PeerCertificates)
		proxy.ServeHTTP(w, r)
	})
	front, host := serve(tls.RequireAnyClientCert, func(w http.ResponseWriter, r *http.Request) {
		if isBlob(r) {
			http.Redirect(w, r, "https://"+blobHost+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		proxy.ServeHTTP(w, r)
	})
	dir := t.TempDir()
	pull := func(settings config.Registries) error {
		c := quick(settings)
		c.certs = dir
		_, err := Pull(t.Context(), c, host+"/app", amd64, newStore(t))
		return err
	}
	write := func(host, name, kind string, der []byte) {
		path := filepath.Join(dir, host, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, pull(nil), TLS)
	write(host, "ca.crt", "CERTIFICATE", front.Certificate().Raw)
	write(blobHost, "ca.crt", "CERTIFICATE", blobs.Certificate().Raw)
	wantKind(t, pull(nil), TLS) // without a certificate of its own
	cert, key := selfSigned(t)
	write(host, "client.cert", "CERTIFICATE", cert)
	if err := pull(nil); err == nil || !strings.Contains(err.Error(), "client.key") {
		t.Errorf("a certificate without its key: %v", err)
	}
	write(host, "client.key", "EC PRIVATE KEY", key)
	if err := pull(nil); err != nil {
		t.Error(err)
	}
	if err := pull(config.Registries{host: {Mirrors: []string{host}}}); err != nil {
		t.Errorf("beside settings of kiln.toml: %v", err)
	}
	if shown > 0 {
		t.Error("the client certificate was shown to another server")
	}
}

// selfSigned returns a certificate and its key in DER form.
func selfSigned(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotAfter: time.Now().Add(24 * time.Hour)}
	if cert, err = x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k); err == nil {
		key, err = x509.MarshalECPrivateKey(k)
	}
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}
