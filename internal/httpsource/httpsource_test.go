package httpsource

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/opencontainers/go-digest"
)

// hang is far longer than anything takes that a test waits for.
const hang = 5 * time.Minute

func newClient(t *testing.T, secrets map[string]string) *Client {
	c := New(t.TempDir(), t.TempDir(), func(_ context.Context, id string) ([]byte, bool, error) {
		v, ok := secrets[id]
		return []byte(v), ok, nil
	})
	c.patience = fetch.Patience{FirstByte: hang, Answer: hang, Idle: hang, Pause: time.Millisecond}
	return c
}

func serve(t *testing.T, h http.HandlerFunc) string {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

func request(t *testing.T, address string) Request {
	h, err := remoteurl.ParseHTTP(address)
	if err != nil {
		t.Fatal(err)
	}
	return Request{HTTP: h}
}

// body returns what a file holds; "" for one that was not fetched.
func body(t *testing.T, f *File) string {
	if f.Path == "" {
		return ""
	}
	data, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestRevalidation asks again for a file, of servers that know one condition or another, or none.
func TestRevalidation(t *testing.T) {
	old := time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)
	young := time.Now().UTC().Format(http.TimeFormat)
	for _, tt := range []struct {
		name, etag, modified string
		conditions           bool // the server looks at them
		fetched              bool // the second time
	}{
		{"etag", `"a"`, "", true, false},
		{"etag and a server that looks at none", `"a"`, "", false, false},
		{"weak etag", `W/"a"`, "", true, false},
		{"weak etag and a server that looks at none", `W/"a"`, "", false, true},
		{"last modified", "", old, true, false},
		{"last modified just now", "", young, true, true},
		{"nothing", "", "", true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			content := "one"
			address := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if tt.etag != "" {
					w.Header().Set("ETag", tt.etag)
				}
				if tt.modified != "" {
					w.Header().Set("Last-Modified", tt.modified)
				}
				if tt.conditions && content == "one" {
					if v := r.Header.Get("If-None-Match"); v != "" && v == tt.etag || tt.modified != "" && r.Header.Get("If-Modified-Since") == tt.modified {
						w.WriteHeader(http.StatusNotModified)
						return
					}
				}
				io.WriteString(w, content)
			})
			c := newClient(t, nil)
			first, err := c.Look(context.Background(), request(t, address))
			if err != nil || body(t, first) != "one" || first.Digest != digest.FromString("one") || first.Size != 3 {
				t.Fatalf("got %+v, %v", first, err)
			}
			second, err := c.Look(context.Background(), request(t, address))
			if err != nil || (second.Path != "") != tt.fetched || second.Digest != first.Digest || !second.Modified.Equal(first.Modified) {
				t.Fatalf("second time: %+v, %v", second, err)
			}
			if again, err := c.Get(context.Background(), request(t, address)); err != nil || body(t, again) != "one" {
				t.Fatalf("without condition: %+v, %v", again, err)
			}
			content, tt.etag = "two", `"b"`
			if third, err := c.Look(context.Background(), request(t, address)); err != nil || body(t, third) != "two" {
				t.Fatalf("changed: %+v, %v", third, err)
			}
		})
	}
}

func TestChecksum(t *testing.T) {
	content := "one"
	var requests atomic.Int32
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		io.WriteString(w, content)
	})
	c := newClient(t, nil)
	for _, want := range []digest.Digest{digest.FromString("one"), digest.NewDigestFromBytes(digest.SHA512, sum512("one"))} {
		r := request(t, address)
		r.Checksum = want
		if f, err := c.Look(context.Background(), r); err != nil || body(t, f) != "one" {
			t.Fatalf("got %+v, %v", f, err)
		}
		n := requests.Load()
		content = "two"
		if f, err := c.Look(context.Background(), r); err != nil || f.Path != "" || f.Digest != digest.FromString("one") || requests.Load() != n {
			t.Fatalf("second time: %+v, %v, %d requests", f, err, requests.Load()-n)
		}
		if _, err := c.Get(context.Background(), r); err == nil || !strings.Contains(err.Error(), "and the checksum says "+want.String()) {
			t.Fatalf("changed: %v", err)
		}
		content = "one"
	}
	left, err := os.ReadDir(c.tmp)
	if err != nil || len(left) != 2 { // the two that were fetched
		t.Errorf("%d files are left, %v", len(left), err)
	}
}

func sum512(s string) []byte { h := sha512.Sum512([]byte(s)); return h[:] }

// TestFaults has servers that fail once or always.
func TestFaults(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	for _, tt := range []struct {
		name  string
		serve func(n int32, w http.ResponseWriter, r *http.Request)
		err   string
		least int32
	}{
		{"503 once", func(n int32, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			w.Write(big)
		}, "", 2},
		{"503 for ever", func(n int32, w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "answered 503", fetch.MaxTries},
		{"404", func(n int32, w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound) }, "answered 404 Not Found (check the address)", 1},
		{"cut off, and the rest asked for", func(n int32, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"x"`)
			if n == 1 {
				w.Header().Set("Content-Length", fmt.Sprint(len(big)))
				w.Write(big[:len(big)/2])
				panic(http.ErrAbortHandler)
			}
			if r.Header.Get("Range") == "" {
				w.WriteHeader(http.StatusTeapot)
				return
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(big))
		}, "", 2},
		{"cut off, and changed since", func(n int32, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", fmt.Sprintf(`"%d"`, n))
			if n == 1 {
				w.Header().Set("Content-Length", fmt.Sprint(len(big)))
				w.Write(bytes.Repeat([]byte("x"), len(big)/2))
				panic(http.ErrAbortHandler)
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(big))
		}, "", 2},
		{"silence", func(n int32, w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "fell silent", fetch.MaxStalls},
		{"silence in the body", func(n int32, w http.ResponseWriter, r *http.Request) {
			w.Write(big[:100])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, "fell silent", fetch.MaxStalls},
		{"another part", func(n int32, w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusPartialContent) }, "another part", 1},
		{"304 to no condition", func(n int32, w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotModified) }, "without condition", 1},
		{"redirects in a circle", func(n int32, w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, "redirects more than 10 times", 1},
		{"redirect to a file", func(n int32, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, "not http or https", 1},
		{"too large", func(n int32, w http.ResponseWriter, r *http.Request) { w.Write(append(big, 'x')) }, "larger than", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var n atomic.Int32
			address := serve(t, func(w http.ResponseWriter, r *http.Request) { tt.serve(n.Add(1), w, r) })
			c := newClient(t, nil)
			c.limit = int64(len(big))
			if strings.HasPrefix(tt.name, "silence") {
				c.patience.FirstByte, c.patience.Idle = 100*time.Millisecond, 100*time.Millisecond
			}
			f, err := c.Look(context.Background(), request(t, address+"/f?sig=canary"))
			switch {
			case tt.err == "" && (err != nil || body(t, f) != string(big)):
				t.Errorf("got %+v, %v", f, err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || !strings.HasPrefix(err.Error(), "download "+address+"/f?…: ") || strings.Contains(err.Error(), "canary")):
				t.Errorf("got %v, want %s", err, tt.err)
			}
			if n.Load() < tt.least {
				t.Errorf("%d requests, want %d", n.Load(), tt.least)
			}
			if left, _ := os.ReadDir(c.tmp); tt.err != "" && len(left) > 0 {
				t.Errorf("%d files are left", len(left))
			}
		})
	}
}

// TestCredentials looks at who gets them: the host that they are for, and not where it redirects.
func TestCredentials(t *testing.T) {
	var other, own string
	stranger := serve(t, func(w http.ResponseWriter, r *http.Request) {
		other = r.Header.Get("Authorization") + r.Header.Get("Referer")
		io.WriteString(w, "x")
	})
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		own = r.Header.Get("Authorization")
		http.Redirect(w, r, strings.Replace(stranger, "http://", "http://u:p@", 1), http.StatusFound)
	})
	for _, tt := range []struct {
		address string
		secrets map[string]string
		want    string
	}{
		{strings.Replace(address, "http://", "http://u:canary@", 1), nil, "Basic dTpjYW5hcnk="},
		{address, map[string]string{"HTTP_AUTH_TOKEN_127.0.0.1": "canary\n"}, "Bearer canary"},
		{address, map[string]string{"HTTP_AUTH_HEADER_127.0.0.1": "Custom canary"}, "Custom canary"},
		{address, map[string]string{"HTTP_AUTH_TOKEN_other": "canary"}, ""},
	} {
		c := newClient(t, tt.secrets)
		if _, err := c.Look(context.Background(), request(t, tt.address)); err != nil {
			t.Fatal(err)
		}
		if own != tt.want || other != "" {
			t.Errorf("the host gets %q, the other %q", own, other)
		}
		state, err := os.ReadFile(c.statePath(request(t, tt.address)))
		if err != nil || strings.Contains(string(state), "canary") {
			t.Errorf("remembered: %s, %v", state, err)
		}
	}
	c := newClient(t, map[string]string{"HTTP_AUTH_HEADER_127.0.0.1": "a\r\nX: b"})
	if _, err := c.Look(context.Background(), request(t, address)); err == nil || !strings.Contains(err.Error(), "more than one line") {
		t.Errorf("a header of two lines: %v", err)
	}
}

// TestRedirectDown holds that https is not left.
func TestRedirectDown(t *testing.T) {
	from, _ := http.NewRequest("GET", "https://h/x", nil)
	to, _ := http.NewRequest("GET", "http://h/x", nil)
	if err := (&download{}).redirect(to, []*http.Request{from}); !errors.Is(err, fetch.ErrPlainHTTP) {
		t.Errorf("https to http: %v", err)
	}
}

// TestDamagedState takes what is remembered for nothing when it is not whole.
func TestDamagedState(t *testing.T) {
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"a"`)
		if r.Header.Get("If-None-Match") != "" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		io.WriteString(w, "x")
	})
	c := newClient(t, nil)
	r := request(t, address)
	if _, err := c.Look(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(c.statePath(r))
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		for _, damaged := range [][]byte{whole[:i], append(append(bytes.Clone(whole[:i]), whole[i]^1), whole[i+1:]...)} {
			if err := os.WriteFile(c.statePath(r), damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if s := c.known(r); s != nil {
				t.Fatalf("%q is taken for %+v", damaged, s)
			}
		}
	}
}

// TestEncoded has servers that compress an answer without being asked to, which is undone, and one that only says of a compressed file
// that it is compressed, which is not.
func TestEncoded(t *testing.T) {
	plain := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(plain)
	z.Close()
	for name, tt := range map[string]struct {
		contentType, encoding string
		want                  []byte
	}{
		"compressed":            {"text/plain", "gzip", plain},
		"compressed, x-gzip":    {"application/octet-stream", "x-gzip", plain},
		"no encoding":           {"application/octet-stream", "", packed.Bytes()},
		"a file that is so":     {"application/gzip", "gzip", packed.Bytes()},
		"a file that is x-gzip": {"application/x-gzip", "x-gzip", packed.Bytes()},
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int32
			address := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", tt.contentType)
				w.Header().Set("ETag", `"e"`)
				if tt.encoding != "" {
					w.Header().Set("Content-Encoding", tt.encoding)
				}
				if n.Add(1) == 1 { // it breaks in the middle, and the rest may be asked for
					w.Header().Set("Content-Length", fmt.Sprint(packed.Len()))
					w.Write(packed.Bytes()[:packed.Len()/2])
					panic(http.ErrAbortHandler)
				}
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(packed.Bytes()))
			})
			f, err := newClient(t, nil).Look(t.Context(), request(t, address+"/f"))
			if err != nil {
				t.Fatal(err)
			}
			if got := body(t, f); got != string(tt.want) || n.Load() != 2 {
				t.Errorf("got %d bytes after %d requests, want %d bytes", len(got), n.Load(), len(tt.want))
			}
		})
	}
}

// A header that the request names is sent, and what was remembered of an answer is of the same header; a given Authorization is sent.
func TestHeaders(t *testing.T) {
	var asked []string
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Header.Get("Accept")+" "+r.Header.Get("Authorization")+" "+r.Header.Get("User-Agent"))
		w.Header().Set("ETag", `"one"`)
		fmt.Fprint(w, r.Header.Get("Accept"))
	})
	c := newClient(t, nil)
	for _, accept := range []string{"a", "b"} {
		r := request(t, address)
		r.Header, r.Authorization = http.Header{"Accept": {accept}, "User-Agent": {"me"}}, "Bearer x"
		f, err := c.Look(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if got := body(t, f); got != accept {
			t.Errorf("for %s there is %q", accept, got)
		}
	}
	if want := []string{"a Bearer x me", "b Bearer x me"}; strings.Join(asked, ",") != strings.Join(want, ",") {
		t.Errorf("the requests had %q", asked)
	}
}

// The name that a server gives a file is one that a file can have, and is remembered.
func TestServerNames(t *testing.T) {
	header := ""
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Disposition", header)
		w.Header().Set("ETag", fmt.Sprintf("%q", header))
		if r.Header.Get("If-None-Match") == w.Header().Get("ETag") {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		io.WriteString(w, "x")
	})
	c := newClient(t, nil)
	for given, want := range map[string]string{
		`attachment; filename="my img.jpg"`: "my img.jpg",
		`attachment; filename="../../a"`:    "a",
		`attachment; filename="C:\\b"`:      "b",
		`attachment; filename=".."`:         "",
		`attachment; filename="dir/"`:       "",
		`attachment`:                        "",
		`;;`:                                "",
	} {
		header = given
		for range 2 {
			if f, err := c.Look(t.Context(), request(t, address)); err != nil || f.Name != want {
				t.Errorf("%s names %q: %v", given, f.Name, err)
			}
		}
	}
}
