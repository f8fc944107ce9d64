package registry

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/registry/registrytest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}

// TestMain keeps the credentials of whoever runs the tests out of them.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "registry-test-")
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"HOME", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"} {
		os.Setenv(name, dir)
	}
	os.Unsetenv("REGISTRY_AUTH_FILE")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// hang is far longer than anything takes that a test waits for, on a machine with much else to do.
const hang = 5 * time.Minute

// quick returns a Client that hardly pauses before it tries again.
func quick(settings config.Registries) *Client {
	c := New(settings)
	c.patience = fetch.Patience{FirstByte: hang, Answer: hang, Idle: hang, Pause: time.Millisecond}
	return c
}

// impatience is how long the server of an impatient client may be silent. Of the answers to several tries one has to come in that time.
const impatience = 2 * time.Second

// impatient returns a Client for a server that falls silent.
func impatient(settings config.Registries) *Client {
	c := quick(settings)
	c.patience.FirstByte, c.patience.Answer, c.patience.Idle = impatience, impatience, impatience
	return c
}

var (
	newStore  = registrytest.NewStore
	makeImage = registrytest.PutImage
	makeIndex = registrytest.PutIndex
)

func wantKind(t *testing.T, err error, kind Kind) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Kind != kind {
		t.Fatalf("error = %v (%T), want an *Error of kind %q", err, err, kind)
	}
	if strings.ContainsAny(e.Error(), "\n\x1b") {
		t.Errorf("the error is not one line: %q", e.Error())
	}
	return e
}

// fault is a server that stands before a registry: f answers a request, or returns false to have it passed on.
type fault struct {
	host  string
	mu    sync.Mutex
	calls []string // "METHOD path"
}

func (f *fault) count(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		if strings.HasPrefix(c, prefix) {
			n++
		}
	}
	return n
}

// sent returns how many requests had bytes of a blob: a small one comes with the PUT that ends its upload.
func (f *fault) sent() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		if strings.HasPrefix(c, "PATCH ") || strings.HasPrefix(c, "PUT ") && strings.Contains(c, "/blobs/") {
			n++
		}
	}
	return n
}

// checkOrder has all that was asked about blobs come before any manifest was sent.
func (f *fault) checkOrder(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	manifest := false
	for _, call := range f.calls {
		manifest = manifest || strings.HasPrefix(call, "PUT ") && strings.Contains(call, "/manifests/")
		if manifest && strings.Contains(call, "/blobs/") {
			t.Errorf("a manifest went before the last blob:\n%s", strings.Join(f.calls, "\n"))
			return
		}
	}
}

func newFault(t *testing.T, behind string, f func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool) *fault {
	t.Helper()
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: behind})
			p.Out.Host = p.In.Host // Locations then name the proxy
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { panic(http.ErrAbortHandler) },
	}
	flt := &fault{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		flt.mu.Lock()
		flt.calls = append(flt.calls, r.Method+" "+r.URL.Path)
		flt.mu.Unlock()
		if f == nil || !f(w, r, proxy) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	srv.Config.ErrorLog = nil
	flt.host = strings.TrimPrefix(srv.URL, "http://")
	return flt
}
