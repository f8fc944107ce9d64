package registry

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/registry/registrytest"
)

// TestOdd has registries that others accept although they are not as the specification has them. Each is pushed to and pulled from.
func TestOdd(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 1<<20, 2<<20)
	compressed := func(what string, length bool) answer {
		return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, what) {
				return false
			}
			ranged := r.Header.Get("Range")
			r.Header.Del("Range")
			rec := recordResponse(pass, r)
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			z.Write(rec.body)
			z.Close()
			rec.body = b.Bytes()
			rec.header.Set("Content-Encoding", "gzip")
			if ranged != "" {
				var at int
				fmt.Sscanf(ranged, "bytes=%d-", &at)
				rec.status, rec.body = http.StatusPartialContent, rec.body[min(at, len(rec.body)):]
				rec.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, at+len(rec.body)-1, b.Len()))
			}
			if !length {
				rec.header.Del("Content-Length")
				for k, v := range rec.header {
					w.Header()[k] = v
				}
				w.WriteHeader(rec.status)
				w.(http.Flusher).Flush()
				w.Write(rec.body)
				return true
			}
			rec.write(w)
			return true
		}
	}
	noPatch := func(code int) answer {
		return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if r.Method == http.MethodPatch {
				w.WriteHeader(code)
			}
			return r.Method == http.MethodPatch
		}
	}
	as := func(method, part string, code int) answer {
		return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			if r.Method != method || !strings.Contains(r.URL.Path, part) {
				return false
			}
			rec := recordResponse(pass, r)
			if rec.status/100 == 2 {
				rec.status = code
			}
			if code == http.StatusNoContent {
				rec.body = nil
			}
			rec.write(w)
			return true
		}
	}
	for name, f := range map[string]answer{
		"no PATCH, 404":               noPatch(404),
		"no PATCH, 405":               noPatch(405),
		"no PATCH, 501":               noPatch(501),
		"no PATCH, 400":               noPatch(400),
		"200 for POST":                as("POST", "", 200),
		"201 for POST":                as("POST", "", 201),
		"204 for POST":                as("POST", "", 204),
		"200 for PATCH":               as("PATCH", "", 200),
		"200 for PUT":                 as("PUT", "", 200),
		"204 for PUT":                 as("PUT", "", 204),
		"202 for PUT":                 as("PUT", "", 202),
		"manifests compressed":        compressed("/manifests/", true),
		"blobs compressed":            compressed("/blobs/", true),
		"blobs compressed, in chunks": compressed("/blobs/", false),
		"blobs said to be what they are": func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			if isBlob(r) {
				w.Header().Set("Content-Encoding", "gzip")
			}
			return false
		},
		"whole blobs as parts": func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			if !isBlob(r) || r.Header.Get("Range") != "" {
				return false
			}
			rec := recordResponse(pass, r)
			if rec.status == http.StatusOK {
				rec.status = http.StatusPartialContent
				rec.header.Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(rec.body)-1, len(rec.body)))
			}
			rec.write(w)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			front := newFault(t, reg.Host, f)
			ref := front.host + "/" + strings.ToLower(strings.NewReplacer(" ", "-", ",", "").Replace(name)) + ":v1"
			if err := quick(nil).Push(t.Context(), from, ref, desc, PushOptions{}); err != nil {
				t.Fatal(err)
			}
			img, err := Pull(t.Context(), quick(nil), ref, amd64, newStore(t))
			if err != nil {
				t.Fatal(err)
			}
			if img.Desc.Digest != desc.Digest {
				t.Errorf("the image is %s, want %s", img.Desc.Digest, desc.Digest)
			}
		})
	}
}

// TestSlowFirstByte has a cache that fetches a layer whole before it answers, or before it sends the first byte of the body. That may
// take longer than a server may be silent within a body.
func TestSlowFirstByte(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 1<<20)
	if err := New(nil).Push(t.Context(), from, reg.Host+"/app", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	const idle = 200 * time.Millisecond
	for name, early := range map[string]bool{"before the header": false, "after the header": true} {
		t.Run(name, func(t *testing.T) {
			front := newFault(t, reg.Host, func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
				if !isBlob(r) {
					return false
				}
				rec := recordResponse(pass, r)
				if early {
					w.Header().Set("Content-Length", strconv.Itoa(len(rec.body)))
					w.(http.Flusher).Flush()
				}
				time.Sleep(4 * idle)
				if early {
					w.Write(rec.body)
				} else {
					rec.write(w)
				}
				return true
			})
			c := quick(nil)
			c.patience.Idle = idle
			if _, err := Pull(t.Context(), c, front.host+"/app", amd64, newStore(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// A registry that never answers is given up soon, although blobs may take long.
func TestSilentForManifests(t *testing.T) {
	front := newFault(t, registrytest.Start(t).Host, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		<-r.Context().Done()
		return true
	})
	c := quick(nil)
	c.patience.Answer = impatience
	if _, err := Pull(t.Context(), c, front.host+"/app", amd64, newStore(t)); !errors.Is(err, fetch.ErrStalled) {
		t.Errorf("got the error %v", err)
	}
}

// hangsUp closes connections that begin with a record of TLS.
type hangsUp struct {
	net.Listener
	reset bool
}

func (l hangsUp) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		first := make([]byte, 1)
		if _, err := io.ReadFull(c, first); err != nil || first[0] != 22 {
			return &begunConn{c, first}, nil
		}
		if l.reset {
			c.(*net.TCPConn).SetLinger(0)
		} else {
			io.CopyN(io.Discard, c, 100) // else the kernel resets the connection
		}
		c.Close()
	}
}

// TestHangsUpOnTLS has a loopback registry of plain HTTP that closes a connection on which TLS begins.
func TestHangsUpOnTLS(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	if err := New(nil).Push(t.Context(), from, reg.Host+"/app", makeImage(t, from, amd64, 10), PushOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, reset := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		proxy := &http.Server{Handler: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: reg.Host})}
		go proxy.Serve(hangsUp{l, reset})
		t.Cleanup(func() { proxy.Close() })
		if _, err := quick(nil).Resolve(t.Context(), l.Addr().String()+"/app", amd64, newStore(t)); err != nil {
			t.Errorf("reset %v: %v", reset, err)
		}
	}
}

// TestChallengeOrder has a registry that offers Basic and Bearer, in both orders, to clients with and without credentials.
func TestChallengeOrder(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 10)
	if err := New(nil).Push(t.Context(), from, reg.Host+"/app", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, order := range []string{"Basic first", "Bearer first", "Bearer without a server"} {
		for _, known := range []bool{false, true} {
			var front *fault
			front = newFault(t, reg.Host, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
				if r.URL.Path == "/token" {
					io.WriteString(w, `{"token":"good"}`)
					return true
				}
				_, password, _ := r.BasicAuth()
				if r.Header.Get("Authorization") == "Bearer good" || password == canary {
					r.Header.Del("Authorization")
					return false
				}
				challenges := []string{`Basic realm="r"`, fmt.Sprintf(`Bearer realm="http://%s/token",service="r"`, front.host)}
				switch order {
				case "Bearer first":
					challenges[0], challenges[1] = challenges[1], challenges[0]
				case "Bearer without a server":
					challenges[1] = `Bearer service="r"`
				}
				w.Header()["Www-Authenticate"] = challenges
				w.WriteHeader(http.StatusUnauthorized)
				return true
			})
			if known {
				useDockerConfig(t, auths(front.host))
			} else {
				useDockerConfig(t, map[string]any{})
			}
			_, err := quick(nil).Resolve(t.Context(), front.host+"/app", amd64, newStore(t))
			if want := known || order != "Bearer without a server"; want != (err == nil) {
				t.Errorf("%s, credentials %v: %v", order, known, err)
			}
		}
	}
}
