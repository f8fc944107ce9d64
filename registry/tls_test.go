package registry

import (
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/registry/registrytest"
	"github.com/opencontainers/go-digest"
)

// TestTLS has a registry whose certificate nobody knows: an error with advice, never plain http, until kiln.toml says more.
func TestTLS(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 1000)
	if err := New(nil).Push(t.Context(), from, reg.Host+"/app", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	var downgrade bool
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: reg.Host})
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if downgrade && isBlob(r) {
			http.Redirect(w, r, "http://"+reg.Host+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = nil
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "https://")
	_, err := quick(nil).Resolve(t.Context(), host+"/app", amd64, newStore(t))
	if e := wantKind(t, err, TLS); !strings.Contains(e.Error(), "ca = [") {
		t.Errorf("no advice: %v", e)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, set := range map[string]config.Registry{"ca": {CA: []string{ca}}, "insecure": {Insecure: true}} {
		if _, err := Pull(t.Context(), quick(config.Registries{host: set}), host+"/app", amd64, newStore(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := quick(config.Registries{host: {CA: []string{"/nowhere.pem"}}}).Resolve(t.Context(), host+"/app", amd64, newStore(t)); err == nil || !strings.Contains(err.Error(), "/nowhere.pem") {
		t.Errorf("a ca that is not there: %v", err)
	}
	downgrade = true
	_, err = Pull(t.Context(), quick(config.Registries{host: {CA: []string{ca}}}), host+"/app", amd64, newStore(t))
	wantKind(t, err, TLS)
}

// TestPlainHTTP is allowed on loopback alone, or where kiln.toml says so.
func TestPlainHTTP(t *testing.T) {
	for name, want := range map[string]bool{"127.0.0.1:5000": true, "localhost": true, "[::1]:5000": true, "127.9.9.9:1": true,
		"10.0.0.1:5000": false, "192.168.1.1": false, "localhost.evil.com": false, "127.0.0.1.evil.com:80": false, "docker.io": false} {
		if h, err := New(config.Registries{name: {Fallback: true}}).host(name); err != nil || h.scheme != "https" || !h.mayFall {
			t.Errorf("%s: --insecure-registry does not speak https and then http", name)
		}
		c := New(nil)
		h, err := c.host(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.fall(); got != want {
			t.Errorf("%s may speak http: %v", name, got)
		}
	}
}

// resumable is a registry that keeps what arrived of an upload when its connection breaks.
type resumable struct {
	mu     sync.Mutex
	data   map[string][]byte // uploads by the path of their session
	blobs  map[string]bool
	resets int
	got    int64
}

const resetAt = 64 << 10

func (s *resumable) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.Method == http.MethodHead && s.blobs[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]], strings.Contains(r.URL.Path, "/manifests/"):
		if r.Method == http.MethodPut {
			w.WriteHeader(http.StatusCreated)
		}
	case r.Method == http.MethodPost:
		path := fmt.Sprintf("/v2/app/blobs/uploads/%d", len(s.data))
		s.data[path] = []byte{}
		w.Header().Set("Location", path+"?state=x")
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodGet:
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(len(s.data[r.URL.Path])-1, 0)))
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodPatch:
		has := len(s.data[r.URL.Path])
		if rg := r.Header.Get("Content-Range"); has > 0 && !strings.HasPrefix(rg, strconv.Itoa(has)+"-") {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		chunk, _ := io.ReadAll(io.LimitReader(r.Body, resetAt))
		s.data[r.URL.Path] = append(s.data[r.URL.Path], chunk...)
		s.got += int64(len(chunk))
		if int64(len(chunk)) < r.ContentLength {
			s.resets++
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Range", fmt.Sprintf("0-%d", len(s.data[r.URL.Path])-1))
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPut:
		rest, _ := io.ReadAll(r.Body)
		s.data[r.URL.Path] = append(s.data[r.URL.Path], rest...)
		s.got += int64(len(rest))
		d := r.URL.Query().Get("digest")
		if string(digest.FromBytes(s.data[r.URL.Path])) != d || r.URL.Query().Get("state") != "x" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.blobs[d] = true
		w.WriteHeader(http.StatusCreated)
	default:
		http.NotFound(w, r)
	}
}

// TestResumedUpload goes on from where the registry is, sending nothing twice.
func TestResumedUpload(t *testing.T) {
	s := &resumable{data: map[string][]byte{}, blobs: map[string]bool{}}
	front := newFault(t, "127.0.0.1:1", func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool { s.ServeHTTP(w, r); return true })
	from := newStore(t)
	desc := makeImage(t, from, amd64, 1<<20)
	if err := quick(nil).Push(t.Context(), from, front.host+"/app", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	var total int64
	if err := from.Blobs(func(d digest.Digest, size int64) error {
		if d != desc.Digest {
			total += size
			if !s.blobs[string(d)] {
				t.Errorf("%s is not there", d)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if s.resets < 10 || s.got != total {
		t.Errorf("%d resets, %d bytes sent of %d", s.resets, s.got, total)
	}
}

// TestBareText has a registry of plain HTTP that answers TLS with text that is no HTTP either.
func TestBareText(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	if err := New(nil).Push(t.Context(), from, reg.Host+"/app", makeImage(t, from, amd64, 10), PushOptions{}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &http.Server{Handler: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: reg.Host})}
	go proxy.Serve(bareText{l})
	t.Cleanup(func() { proxy.Close() })
	if _, err := New(nil).Resolve(t.Context(), l.Addr().String()+"/app", amd64, newStore(t)); err != nil {
		t.Error(err)
	}
}

// bareText answers connections that begin with a record of TLS with a line of text.
type bareText struct{ net.Listener }

func (l bareText) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil || first[0] != 22 {
			return &begunConn{c, first}, nil
		}
		io.WriteString(c, "Bad request version\n")
		c.Close()
	}
}

// begunConn is a connection of which something was read already.
type begunConn struct {
	net.Conn
	begun []byte
}

func (c *begunConn) Read(p []byte) (int, error) {
	n := copy(p, c.begun)
	c.begun = c.begun[n:]
	if n > 0 {
		return n, nil
	}
	return c.Conn.Read(p)
}
