package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/registry/registrytest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// recorded is an answer that can be changed before it is sent.
type recorded struct {
	status int
	header http.Header
	body   []byte
}

func recordResponse(h http.Handler, r *http.Request) *recorded {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return &recorded{rec.Code, rec.Header(), rec.Body.Bytes()}
}

func (r *recorded) write(w http.ResponseWriter) {
	for k, v := range r.header {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(r.body)))
	w.WriteHeader(r.status)
	w.Write(r.body)
}

// hangUp sends the beginning of an answer and breaks the connection.
func hangUp(w http.ResponseWriter, status int, header http.Header, length int, begin []byte) {
	for k, v := range header {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", strconv.Itoa(length))
	w.WriteHeader(status)
	w.Write(begin)
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// stall keeps a request waiting until the client gives up.
func stall(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-time.After(hang):
	}
}

func isBlob(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
}

type answer = func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool

// TestPullFaults pulls through servers that do wrong. Whatever they do, nothing wrong is in the store, and where one of five
// tries can succeed the pull does.
func TestPullFaults(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 1<<20)
	if err := New(nil).Push(t.Context(), from, reg.Host+"/app", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	status := func(code int, times int32, header ...string) answer {
		var n atomic.Int32
		return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if n.Add(1) > times {
				return false
			}
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			return true
		}
	}
	blobs := func(f answer) answer {
		return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			return isBlob(r) && f(w, r, pass)
		}
	}
	change := func(f func(*recorded)) answer {
		return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			rec := recordResponse(pass, r)
			f(rec)
			rec.write(w)
			return true
		}
	}
	truncate := func(step int, ranges bool) answer {
		return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			if !ranges {
				r.Header.Del("Range")
			}
			rec := recordResponse(pass, r)
			if len(rec.body) <= step {
				rec.write(w)
				return true
			}
			hangUp(w, rec.status, rec.header, len(rec.body), rec.body[:step])
			return true
		}
	}
	silent := func(times int32, after int) answer {
		var n atomic.Int32
		return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			var rec *recorded
			if after > 0 {
				if rec = recordResponse(pass, r); len(rec.body) <= after {
					rec.write(w)
					return true
				}
			}
			if n.Add(1) > times {
				return false
			}
			if rec != nil {
				w.Header().Set("Content-Length", strconv.Itoa(len(rec.body)))
				w.Write(rec.body[:after])
				w.(http.Flusher).Flush()
			}
			stall(r)
			return true
		}
	}
	var dripped atomic.Int32
	for _, c := range []struct {
		name string
		f    answer
		kind Kind // "" is success
	}{
		{"500 twice", status(500, 2), ""},
		{"503 four times", blobs(status(503, 4)), ""},
		{"502 for ever", status(502, 1<<30), Refused},
		{"429 with Retry-After", status(429, 3, "Retry-After", "0"), ""},
		{"429 with a date in the past", status(429, 2, "Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"), ""},
		{"429 for ever", status(429, 1<<30, "Retry-After", "0"), RateLimited},
		{"403", status(403, 1<<30), Unauthorized},
		{"418", status(418, 1<<30), Refused},
		{"reset", func(http.ResponseWriter, *http.Request, http.Handler) bool {
			if dripped.Add(1) <= 2 {
				panic(http.ErrAbortHandler)
			}
			return false
		}, ""},
		{"truncated at each 64 kB", blobs(truncate(64<<10, true)), ""},
		{"truncated, no ranges", blobs(func() answer {
			var n atomic.Int32
			return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
				if n.Add(1) > 3 {
					r.Header.Del("Range")
					return false
				}
				return truncate(100<<10, false)(w, r, pass)
			}
		}()), ""},
		{"truncated, 416 to every range", blobs(func() answer {
			var n atomic.Int32
			return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
				if r.Header.Get("Range") != "" {
					w.WriteHeader(416)
					return true
				}
				if n.Add(1) > 2 {
					return false
				}
				return truncate(100<<10, false)(w, r, pass)
			}
		}()), ""},
		{"truncated at nothing", blobs(truncate(0, true)), Unreachable},
		{"wrong range", blobs(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			if rg := r.Header.Get("Range"); rg != "" {
				r.Header.Set("Range", "bytes=7-")
				return false
			}
			return truncate(900<<10, true)(w, r, pass)
		}), Unreachable},
		{"wrong bytes", blobs(change(func(r *recorded) { r.body[len(r.body)/2] ^= 1 })), Invalid},
		{"shorter", blobs(change(func(r *recorded) { r.body = r.body[:len(r.body)-1] })), Unreachable},
		{"another blob", blobs(change(func(r *recorded) { clear(r.body) })), Invalid},
		{"longer", blobs(change(func(r *recorded) { r.body = append(r.body, 0) })), Invalid},
		{"endless", blobs(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			for chunk := make([]byte, 1<<16); ; {
				if _, err := w.Write(chunk); err != nil {
					return true
				}
			}
		}), Invalid},
		{"silent once", blobs(silent(1, 0)), ""},
		{"silent in the middle", blobs(silent(1, 500<<10)), ""},
		{"silent for ever", silent(1<<30, 0), Unreachable},
		{"a byte at a time", blobs(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			w.Header().Set("Content-Length", "1048576")
			for r.Context().Err() == nil {
				w.Write([]byte{0})
				w.(http.Flusher).Flush()
				time.Sleep(20 * time.Millisecond)
			}
			return true
		}), Unreachable},
		{"redirects for ever", blobs(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}), Invalid},
		{"redirect to a file", blobs(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(307)
			return true
		}), Invalid},
		{"relative redirect", blobs(func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			if r.URL.Query().Get("again") == "" {
				w.Header().Set("Location", "?again=1")
				w.WriteHeader(307)
				return true
			}
			return false
		}), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			front := newFault(t, reg.Host, c.f)
			store := newStore(t)
			ctx, cancel := context.WithTimeout(t.Context(), hang)
			defer cancel()
			client := quick(nil)
			if strings.HasPrefix(c.name, "silent") || c.name == "a byte at a time" {
				client = impatient(nil)
			}
			_, err := Pull(ctx, client, front.host+"/app", amd64, store)
			if c.kind == "" && err != nil {
				t.Fatal(err)
			}
			if c.kind != "" {
				wantKind(t, err, c.kind)
			}
			checkStore(t, store)
		})
	}
}

// checkStore has every blob of the store be what its name says and nothing left over.
func checkStore(t *testing.T, s *cas.Store) {
	t.Helper()
	err := s.Blobs(func(d digest.Digest, size int64) error {
		_, err := s.ReadAll(ocispec.Descriptor{Digest: d, Size: size}, 1<<30)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, dir := range []string{"/tmp", "/locks"} {
		if left, _ := os.ReadDir(s.Root() + dir); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

// documents serves manifests of a test's making under the tag "latest", and under their digests.
func serveDocuments(t *testing.T, contentType string, top []byte, others ...[]byte) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		if id == "latest" {
			if contentType != "" {
				w.Header().Set("Content-Type", contentType)
			} else {
				w.Header()["Content-Type"] = nil
			}
			if r.Method == http.MethodGet {
				w.Write(top)
			}
			return
		}
		for _, data := range others {
			if string(digest.FromBytes(data)) == id {
				var d struct{ MediaType string }
				json.Unmarshal(data, &d)
				w.Header().Set("Content-Type", d.MediaType)
				w.Write(data)
				return
			}
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://") + "/app"
}

func TestHostileDocuments(t *testing.T) {
	const manifest, index = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	cfgData := []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`)
	cfg := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, ocispec.MediaTypeImageConfig, digest.FromBytes(cfgData), len(cfgData))
	good := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[]}`, manifest, cfg)
	entry := func(doc, mediaType, platform string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d%s}`, mediaType, digest.FromString(doc), len(doc), platform)
	}
	list := func(entries ...string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, index, strings.Join(entries, ","))
	}
	const linux = `,"platform":{"os":"linux","architecture":"amd64"}`
	deep := []string{good}
	for range 6 {
		t := index
		if len(deep) == 1 {
			t = manifest
		}
		deep = append(deep, list(entry(deep[len(deep)-1], t, linux)))
	}
	hex := strings.Repeat("a", 64)
	long := strings.Repeat("long", 100<<10)
	var many []string
	for i := range 10000 {
		many = append(many, entry(good, manifest, fmt.Sprintf(`,"platform":{"os":"linux","architecture":"arch%d"}`, i)))
	}
	for _, c := range []struct {
		name, contentType, doc string
		others                 []string
		ok                     bool
	}{
		{"good", manifest, good, nil, true},
		{"good, Content-Type with parameters", manifest + "; charset=utf-8", good, nil, true},
		{"good, no mediaType", manifest, strings.Replace(good, fmt.Sprintf(`"mediaType":%q,"config"`, manifest), `"config"`, 1), nil, true},
		{"three indexes deep", index, deep[3], deep, true},
		{"six indexes deep", index, deep[6], deep, false},
		{"both", manifest, good[:len(good)-1] + `,"manifests":[]}`, nil, false},
		{"both, as an index", index, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[],"layers":[]}`, index), nil, false},
		{"both, in capitals", manifest, good[:len(good)-1] + `,"Manifests":[]}`, nil, false},
		{"layers twice", manifest, good[:len(good)-1] + `,"layers":[]}`, nil, false},
		{"layers twice, folded", manifest, good[:len(good)-1] + `,"layerſ":[]}`, nil, false},
		{"other Content-Type", index, good, nil, false},
		{"Content-Type of no image", "text/html", good, nil, false},
		{"no type at all", "", strings.Replace(good, fmt.Sprintf(`"mediaType":%q,"config"`, manifest), `"config"`, 1), nil, false},
		{"schema 1", "application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"fsLayers":[]}`, nil, false},
		{"schema 1 in disguise", manifest, `{"schemaVersion":2,"fsLayers":[],"config":{},"layers":[]}`, nil, false},
		{"an artifact", manifest, strings.Replace(good, ocispec.MediaTypeImageConfig, "application/vnd.cncf.helm.config.v1+json", 1), nil, false},
		{"digest with a path", manifest, strings.Replace(good, cfg, `{"mediaType":"`+ocispec.MediaTypeImageConfig+`","digest":"sha256:../../../../etc/passwd","size":1}`, 1), nil, false},
		{"digest in capitals", manifest, strings.Replace(good, string(digest.FromBytes(cfgData)), "sha256:"+strings.ToUpper(hex), 1), nil, false},
		{"md5", manifest, strings.Replace(good, string(digest.FromBytes(cfgData)), "md5:"+hex[:32], 1), nil, false},
		{"negative size", manifest, strings.Replace(good, fmt.Sprintf(`"size":%d`, len(cfgData)), `"size":-1`, 1), nil, false},
		{"huge config", manifest, strings.Replace(good, fmt.Sprintf(`"size":%d`, len(cfgData)), `"size":99999999999`, 1), nil, false},
		{"not JSON", manifest, `<html>`, nil, false},
		{"trailing", manifest, good + good, nil, false},
		{"more layers than diff_ids", manifest, strings.Replace(good, `"layers":[]`, `"layers":[`+cfg+`]`, 1), nil, false},
		{"too large", manifest, strings.Repeat(" ", cas.MaxManifest) + good, nil, false},
		{"data that differs", manifest, strings.Replace(good, `"size"`, `"data":"e30=","size"`, 1), nil, true},
		{"chosen entry is broken", index, list(entry(good, manifest, `,"platform":{"os":"linux","architecture":"arm64"}`), entry("missing", manifest, linux)), []string{good}, false},
		{"entry says another size", index, list(strings.Replace(entry(good, manifest, linux), fmt.Sprintf(`"size":%d`, len(good)), `"size":7`, 1)), []string{good}, false},
		{"entry says another type", index, list(entry(good, index, linux)), []string{good}, false},
		{"config is for another platform", index, list(entry(good, manifest, `,"platform":{"os":"linux","architecture":"arm64"}`)), []string{good}, false},
		{"entries without platform", index, list(entry(good, manifest, "")), []string{good}, true},
		{"empty index", index, list(), nil, false},
		{"10000 other platforms", index, list(many...), nil, false},
		{"a long platform", index, list(entry(good, manifest, `,"platform":{"os":"linux","architecture":"`+long+`"}`)), nil, false},
		{"a long name twice", manifest, `{"` + long + `":1,"` + long + `":1}`, nil, false},
		{"a long mediaType", index, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[]}`, long), nil, false},
		{"a long mediaType of the config", manifest, strings.Replace(good, ocispec.MediaTypeImageConfig, long, 1), nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := amd64
			if c.name == "config is for another platform" {
				want.Architecture = "arm64"
			}
			others := [][]byte{cfgData}
			for _, o := range c.others {
				others = append(others, []byte(o))
			}
			store := newStore(t)
			_, err := quick(nil).Resolve(t.Context(), serveDocuments(t, c.contentType, []byte(c.doc), others...), want, store)
			if (err == nil) != c.ok {
				t.Errorf("Resolve = %v, want success: %v", err, c.ok)
			}
			if err != nil && len(err.Error()) > 4<<10 {
				t.Errorf("the error has %d bytes: %.500s", len(err.Error()), err)
			}
			checkStore(t, store)
		})
	}
}

// TestWrongManifest asks by digest and gets something else.
func TestWrongManifest(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 10)
	if err := New(nil).Push(t.Context(), from, reg.Host+"/app", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	front := newFault(t, reg.Host, func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") || r.Method != http.MethodGet {
			return false
		}
		rec := recordResponse(pass, r)
		rec.body = append(rec.body, ' ')
		rec.write(w)
		return true
	})
	for _, ref := range []string{"/app@" + string(desc.Digest), "/app:latest"} {
		store := newStore(t)
		_, err := quick(nil).Resolve(t.Context(), front.host+ref, amd64, store)
		wantKind(t, err, Invalid)
		checkStore(t, store)
	}
}

// TestPushFaults pushes through servers that do wrong, and then pulls what is there from the registry behind.
func TestPushFaults(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 1<<20)
	on := func(method, part string, times int32, f answer) answer {
		var n atomic.Int32
		return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			return r.Method == method && strings.Contains(r.URL.Path, part) && n.Add(1) <= times && f(w, r, pass)
		}
	}
	code := func(c int) answer {
		return func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(c)
			return true
		}
	}
	// part passes the first bytes of an upload on and breaks the connection.
	part := func(n int64) answer {
		return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			if r.ContentLength <= n {
				return false
			}
			begin := int64(0)
			if rg := r.Header.Get("Content-Range"); rg != "" {
				begin, _ = strconv.ParseInt(rg[:strings.Index(rg, "-")], 10, 64)
				r.Header.Set("Content-Range", fmt.Sprintf("%d-%d", begin, begin+n-1))
			}
			data := make([]byte, n)
			io.ReadFull(r.Body, data)
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(data)), n
			recordResponse(pass, r)
			panic(http.ErrAbortHandler)
		}
	}
	// stored has the answer name another digest than the registry's.
	stored := func(as string) answer {
		return func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			rec := recordResponse(pass, r)
			rec.header.Del("Docker-Content-Digest")
			if as != "" {
				rec.header.Set("Docker-Content-Digest", as)
			}
			rec.write(w)
			return true
		}
	}
	const many = 1 << 30
	type fault struct {
		name string
		f    answer
		ok   bool
	}
	var cases []fault
	for n := int64(64 << 10); n < 1<<20; n += 64 << 10 {
		cases = append(cases, fault{fmt.Sprintf("reset at %d", n), on("PATCH", "", 1, part(n)), true})
	}
	for _, c := range append(cases, []fault{
		{"POST 500", on("POST", "", 3, code(500)), true},
		{"PATCH 500", on("PATCH", "", 3, code(500)), true},
		{"PUT 500", on("PUT", "/blobs/", 3, code(500)), true},
		{"POST 429", on("POST", "", 3, code(429)), true},
		{"PATCH 429", on("PATCH", "", 3, code(429)), true},
		{"PUT 429", on("PUT", "", 3, code(429)), true},
		{"PUT 429 for ever", on("PUT", "", many, code(429)), false},
		{"POST 503", on("POST", "", 3, code(503)), true},
		{"POST 403", on("POST", "", many, code(403)), false},
		{"PATCH 503", on("PATCH", "", 3, code(503)), true},
		{"PUT 503", on("PUT", "/blobs/", 3, code(503)), true},
		{"POST upload unknown", on("POST", "", many, code(404)), false},
		{"PATCH upload unknown", on("PATCH", "", 2, code(404)), true},
		{"PUT upload unknown", on("PUT", "/blobs/", 2, code(404)), true},
		{"PATCH 416", on("PATCH", "", 2, code(416)), true},
		{"reset twice", on("PATCH", "", 2, part(64<<10)), true}, // this registry loses a session that breaks
		{"reset for ever", on("PATCH", "", many, part(64<<10)), false},
		{"reset at nothing", on("PATCH", "", 3, func(http.ResponseWriter, *http.Request, http.Handler) bool { panic(http.ErrAbortHandler) }), true},
		{"reset before PUT", on("PUT", "/blobs/", 2, func(http.ResponseWriter, *http.Request, http.Handler) bool { panic(http.ErrAbortHandler) }), true},
		{"reset after PUT", on("PUT", "/blobs/", 1, func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			recordResponse(pass, r)
			panic(http.ErrAbortHandler)
		}), true},
		{"status 404", func() answer {
			lost := on("GET", "/uploads/", many, code(404))
			broken := on("PATCH", "", 2, part(64<<10))
			return func(w http.ResponseWriter, r *http.Request, p http.Handler) bool {
				return lost(w, r, p) || broken(w, r, p)
			}
		}(), true},
		{"wrong Range in 202", on("PATCH", "", 2, func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			rec := recordResponse(pass, r)
			rec.header.Set("Range", "0-99999999")
			rec.write(w)
			return true
		}), true},
		{"Range in 202 is of a part", on("PATCH", "", 2, func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			n := min(r.ContentLength, 64<<10)
			data := make([]byte, n)
			io.ReadFull(r.Body, data)
			io.Copy(io.Discard, r.Body)
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(data)), n
			recordResponse(pass, r).write(w)
			return true
		}), true},
		{"no Range in 202", on("PATCH", "", many, func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			rec := recordResponse(pass, r)
			rec.header.Del("Range")
			rec.write(w)
			return true
		}), true},
		{"no digest in 201", on("PUT", "", many, stored("")), true},
		{"another digest in 201", on("PUT", "/blobs/", many, stored("sha256:"+strings.Repeat("0", 64))), false},
		{"mount refused", on("POST", "", many, func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			r.URL.RawQuery = ""
			return false
		}), true},
		{"mount 403", on("POST", "", many, func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
			return r.URL.RawQuery != "" && code(403)(w, r, pass)
		}), true},
		{"HEAD that lies", on("HEAD", "/blobs/", many, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			w.WriteHeader(200)
			return true
		}), false},
		{"no answers to HEAD", on("HEAD", "", many, code(405)), true},
		{"manifest 400", on("PUT", "/manifests/", many, code(400)), false},
		{"manifest 500", on("PUT", "/manifests/", 2, code(500)), true},
		{"silent PATCH", on("PATCH", "", 1, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			io.Copy(io.Discard, r.Body)
			stall(r)
			return true
		}), true},
		{"a PATCH that is not read", on("PATCH", "", 1, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			time.Sleep(2 * impatience)
			panic(http.ErrAbortHandler)
		}), true},
		{"answered before it is read", on("PATCH", "", 2, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			w.WriteHeader(503)
			return true
		}), true},
	}...) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			front := newFault(t, reg.Host, c.f)
			repo := "/" + strings.ToLower(strings.ReplaceAll(c.name, " ", "-")) + ":v1"
			o := PushOptions{MountFrom: map[digest.Digest]string{}}
			if strings.HasPrefix(c.name, "mount") {
				from.Blobs(func(d digest.Digest, _ int64) error { o.MountFrom[d] = front.host + "/nowhere"; return nil })
			}
			client := quick(nil)
			if strings.Contains(c.name, "silent") || strings.Contains(c.name, "not read") {
				client = impatient(nil)
			}
			err := client.Push(t.Context(), from, front.host+repo, desc, o)
			if (err == nil) != c.ok {
				t.Fatalf("Push = %v, want success: %v", err, c.ok)
			}
			front.checkOrder(t)
			if n := len(front.calls); n > 100 {
				t.Errorf("%d requests were made", n)
			}
			img, err := Pull(t.Context(), quick(nil), reg.Host+repo, amd64, newStore(t))
			if (err == nil) != c.ok {
				t.Fatalf("Pull after it = %v", err)
			}
			if c.ok && img.Desc.Digest != desc.Digest {
				t.Errorf("another image is there")
			}
		})
	}
}

// TestTooLarge has a proxy refuse large requests: the error says what can be done.
func TestTooLarge(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 1<<20)
	front := newFault(t, reg.Host, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.ContentLength < 100_000 {
			return false
		}
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return true
	})
	err := quick(nil).Push(t.Context(), from, front.host+"/app", desc, PushOptions{})
	if e := wantKind(t, err, Refused); !strings.Contains(e.Error(), "have that limit raised") {
		t.Errorf("%v", e)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	front := newFault(t, "127.0.0.1:1", func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		cancel()
		stall(r)
		return true
	})
	c := New(config.Registries{front.host: {HTTP: true}})
	c.patience = quick(nil).patience
	if _, err := c.Resolve(ctx, front.host+"/app", amd64, newStore(t)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
