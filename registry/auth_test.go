package registry

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/registry/registrytest"
)

const canary = "c4n4ry-p4ssword"

// dockerConfig has the tests' config.json hold v.
func useDockerConfig(t *testing.T, v any) string {
	t.Helper()
	dir := t.TempDir()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	return filepath.Join(dir, "config.json")
}

func auths(host string) map[string]any {
	return map[string]any{"auths": map[string]any{host: map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("user:" + canary))}}}
}

// listener is a server that notes every Authorization and every body that reaches it.
type listener struct {
	*httptest.Server
	mu    sync.Mutex
	heard []string
}

func newListener(t *testing.T, h http.Handler) *listener {
	t.Helper()
	l := &listener{}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		l.heard = append(l.heard, r.Header.Get("Authorization")+" "+r.URL.RawQuery)
		l.mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(l.Close)
	return l
}

func (l *listener) host() string { return strings.TrimPrefix(l.URL, "http://") }

func (l *listener) checkNoSecrets(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.heard {
		if strings.Contains(h, "Basic") || strings.Contains(h, "Bearer") || strings.Contains(h, canary) {
			t.Errorf("another host was sent %q", h)
		}
	}
}

// guarded puts a token server and a demand for its tokens before a registry. Each token is good for so many uses.
func guarded(t *testing.T, behind string, uses int32, extra func(w http.ResponseWriter, r *http.Request) bool) *fault {
	var front *fault
	var n, left atomic.Int32
	var current atomic.Value
	current.Store("")
	front = newFault(t, behind, func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if r.URL.Path == "/token" {
			user, password, _ := r.BasicAuth()
			if user != "user" || password != canary {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			tok := fmt.Sprintf("tok%d", n.Add(1))
			current.Store(tok)
			left.Store(uses)
			fmt.Fprintf(w, `{"token":%q,"expires_in":300}`, tok)
			return true
		}
		if r.Header.Get("Authorization") != "Bearer "+current.Load().(string) || left.Add(-1) < 0 {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		r.Header.Del("Authorization")
		return extra != nil && extra(w, r)
	})
	return front
}

func TestToken(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 300_000, 200_000)
	for _, uses := range []int32{1 << 30, 5, 1} {
		t.Run(fmt.Sprint(uses), func(t *testing.T) {
			front := guarded(t, reg.Host, uses, nil)
			useDockerConfig(t, auths(front.host))
			ref := fmt.Sprintf("%s/app:v%d", front.host, uses)
			c := quick(nil)
			if uses > 1 { // with one use several blobs side by side take each other's tokens
				if err := c.Push(t.Context(), from, ref, desc, PushOptions{}); err != nil {
					t.Fatal(err)
				}
			} else if err := quick(nil).Push(t.Context(), from, reg.Host+"/app:v1", desc, PushOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Resolve(t.Context(), ref, amd64, newStore(t)); err != nil {
				t.Fatal(err)
			}
			if n := front.count("GET /token"); uses == 1<<30 && n != 1 {
				t.Errorf("a push, and a pull from the same repository, fetch %d tokens", n)
			}
		})
	}
}

// TestTokenRedirect has the token server send kiln elsewhere: it goes where the password may go, and nowhere else.
func TestTokenRedirect(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 1000)
	if err := quick(nil).Push(t.Context(), from, reg.Host+"/app", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	evil := newListener(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"token":"tok"}`) }))
	for _, c := range []struct{ name, to, identity, want string }{
		{"the same server", "/tokens?service=test", "", ""},
		{"the same server, with an identity token", "/tokens", canary, ""},
		{"another server", evil.URL + "/token", "", "realms = ["},
		{"another server, with an identity token", evil.URL + "/token", canary, "realms = ["},
		{"itself", "/token", "", "redirects more than 10 times"},
		{"no address", "http://[::1", "", "Location"},
		{"a file", "file:///etc/passwd", "", "invalid address"},
		{"nowhere", "", "", "307"},
	} {
		t.Run(c.name, func(t *testing.T) {
			front := newFault(t, reg.Host, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
				switch user, password, _ := r.BasicAuth(); {
				case r.URL.Path == "/token":
					w.Header().Set("Location", c.to)
					w.WriteHeader(http.StatusTemporaryRedirect)
				case r.URL.Path == "/tokens" && (user == "user" && password == canary || r.PostFormValue("refresh_token") == canary):
					fmt.Fprint(w, `{"token":"tok"}`)
				case r.Header.Get("Authorization") != "Bearer tok":
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
					w.WriteHeader(http.StatusUnauthorized)
				default:
					r.Header.Del("Authorization")
					return false
				}
				return true
			})
			config := auths(front.host)
			if c.identity != "" {
				config = map[string]any{"auths": map[string]any{front.host: map[string]string{"identitytoken": c.identity}}}
			}
			useDockerConfig(t, config)
			_, err := Pull(t.Context(), quick(nil), front.host+"/app", amd64, newStore(t))
			switch {
			case c.want == "" && err != nil:
				t.Fatal(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), canary)):
				t.Fatalf("got %v, want %q", err, c.want)
			}
		})
	}
	if len(evil.heard) != 0 {
		t.Error("another server was asked")
	}
}

// TestCheckPush asks whether a push would be taken, and gives the upload up that it began.
func TestCheckPush(t *testing.T) {
	reg := registrytest.Start(t)
	for _, c := range []struct {
		name  string
		extra func(w http.ResponseWriter, r *http.Request) bool
		login bool
		kind  Kind // "" is no objection
	}{
		{"taken", nil, true, ""},
		{"no login", nil, false, Unauthorized},
		{"no right", func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(http.StatusForbidden); return true }, true, Unauthorized},
		{"not now", func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}, true, ""},
		{"not so", func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(http.StatusNotFound); return true }, true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			front := guarded(t, reg.Host, 1000, c.extra)
			useDockerConfig(t, map[string]any{})
			if c.login {
				useDockerConfig(t, auths(front.host))
			}
			err := quick(nil).CheckPush(t.Context(), front.host+"/app:v1")
			if c.kind != "" {
				wantKind(t, err, c.kind)
			} else if err != nil {
				t.Error(err)
			}
			if n := front.count("DELETE /v2/app/blobs/uploads/"); (n == 1) != (c.name == "taken") {
				t.Errorf("%d uploads were given up", n)
			}
		})
	}
}

func TestUnauthorized(t *testing.T) {
	reg := registrytest.Start(t)
	front := guarded(t, reg.Host, 100, nil)
	path := useDockerConfig(t, map[string]any{"auths": map[string]any{}})
	_, err := quick(nil).Resolve(t.Context(), front.host+"/app", amd64, newStore(t))
	e := wantKind(t, err, Unauthorized)
	if !strings.Contains(e.Error(), path+" has no credentials") || !strings.Contains(e.Error(), "kiln login "+front.host) {
		t.Errorf("no advice: %v", e)
	}
	useDockerConfig(t, map[string]any{"auths": map[string]any{front.host: map[string]string{"username": "user", "password": "wrong"}}})
	_, err = quick(nil).Resolve(t.Context(), front.host+"/app", amd64, newStore(t))
	wantKind(t, err, Unauthorized)
	if n := front.count(""); n > 10 {
		t.Errorf("%d requests with a wrong password", n)
	}
}

func TestBasic(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 1000)
	front := newFault(t, reg.Host, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if user, password, _ := r.BasicAuth(); user == "user" && password == canary {
			r.Header.Del("Authorization")
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	useDockerConfig(t, auths(front.host))
	c := quick(nil)
	if err := c.Push(t.Context(), from, front.host+"/app", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Pull(t.Context(), c, front.host+"/app", amd64, newStore(t)); err != nil {
		t.Fatal(err)
	}
}

// TestEvilRealm has a registry that names another host's token server.
func TestEvilRealm(t *testing.T) {
	evil := newListener(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"token":"x"}`) }))
	front := newFault(t, "127.0.0.1:1", func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, evil.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	useDockerConfig(t, auths(front.host))
	_, err := quick(nil).Resolve(t.Context(), front.host+"/app", amd64, newStore(t))
	e := wantKind(t, err, Credentials)
	if !strings.Contains(e.Error(), "realms = [") || strings.Contains(e.Error(), canary) {
		t.Errorf("%v", e)
	}
	evil.checkNoSecrets(t)
	if len(evil.heard) != 0 {
		t.Error("it was asked at all")
	}
	// With the user's word for it, it is.
	c := quick(config.Registries{front.host: {HTTP: true, Realms: []string{evil.host()}}})
	if _, err := c.Resolve(t.Context(), front.host+"/app", amd64, newStore(t)); err == nil || len(evil.heard) == 0 {
		t.Errorf("realms is without effect: %v", err)
	}
}

// TestRedirect sends blobs to another host and from there on and back: nobody but the registry sees the token.
func TestRedirect(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 100_000)
	if err := New(nil).Push(t.Context(), from, reg.Host+"/app", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	b2 := newListener(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+reg.Host+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	b := newListener(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, b2.URL+r.URL.Path, http.StatusFound)
	}))
	front := guarded(t, reg.Host, 1000, func(w http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) {
			http.Redirect(w, r, b.URL+r.URL.Path+"?X-Signature=abc", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	useDockerConfig(t, auths(front.host))
	if _, err := Pull(t.Context(), quick(nil), front.host+"/app", amd64, newStore(t)); err != nil {
		t.Fatal(err)
	}
	b.checkNoSecrets(t)
	b2.checkNoSecrets(t)
	if len(b.heard) == 0 || len(b2.heard) == 0 {
		t.Error("nothing was redirected")
	}
}

// TestRedirectBack sends to another host and back to the registry, which does not get the token then either.
func TestRedirectBack(t *testing.T) {
	var front *fault
	back := newListener(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+front.host+"/steal", http.StatusFound)
	}))
	var stolen atomic.Value
	front = guarded(t, "127.0.0.1:1", 1000, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/steal" {
			stolen.Store("with a token")
		}
		http.Redirect(w, r, back.URL, http.StatusFound)
		return true
	})
	useDockerConfig(t, auths(front.host))
	if _, err := quick(nil).Resolve(t.Context(), front.host+"/app", amd64, newStore(t)); err == nil {
		t.Fatal("resolved")
	}
	if len(back.heard) == 0 {
		t.Error("nothing was redirected")
	}
	if stolen.Load() != nil {
		t.Error("the way back had a token")
	}
	back.checkNoSecrets(t)
}

// TestLocation has the upload go to another host, which gets the blob but no token.
func TestLocation(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 100_000)
	other := newListener(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			w.WriteHeader(http.StatusAccepted)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}))
	front := guarded(t, reg.Host, 1000, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			w.Header().Set("Location", other.URL+"/upload?sig=1")
			w.WriteHeader(http.StatusAccepted)
			return true
		}
		return false
	})
	useDockerConfig(t, auths(front.host))
	_ = quick(nil).Push(t.Context(), from, front.host+"/app", desc, PushOptions{}) // fails at the manifest: the registry has no blob
	other.checkNoSecrets(t)
	if len(other.heard) == 0 {
		t.Error("the upload did not go there")
	}
}

// TestAbsentHelper makes no second request when the helper that has the credentials is not there.
func TestAbsentHelper(t *testing.T) {
	reg := registrytest.Start(t)
	front := guarded(t, reg.Host, 100, nil)
	useDockerConfig(t, map[string]any{"credHelpers": map[string]string{front.host: "absent"}})
	_, err := quick(nil).Resolve(t.Context(), front.host+"/app", amd64, newStore(t))
	e := wantKind(t, err, Credentials)
	if !strings.Contains(e.Error(), "docker-credential-absent") || front.count("GET /token") != 0 {
		t.Errorf("%v, calls %v", e, front.calls)
	}
}
