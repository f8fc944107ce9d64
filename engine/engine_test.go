package engine

import (
	"archive/tar"
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestParse holds what an address may be.
func TestParse(t *testing.T) {
	for _, tc := range []struct {
		host string
		tls  bool
		want address
		err  string
	}{
		{host: "unix:///run/x.sock", want: address{socket: "/run/x.sock"}},
		{host: "unix:////run/../run/x.sock", want: address{socket: "/run/x.sock"}},
		{host: "unix://x.sock", err: "not absolute"},
		{host: "tcp://host:99", want: address{host: "host:99"}},
		{host: "tcp://host", want: address{host: "host:2375"}},
		{host: "tcp://host/", tls: true, want: address{host: "host:2376"}},
		{host: "tcp://[::1]:99", want: address{host: "[::1]:99"}},
		{host: "tcp://[::1]", want: address{host: "[::1]:2375"}},
		{host: "tcp://", err: "HOST:PORT"},
		{host: "tcp://user:secret@host:1", err: "HOST:PORT"},
		{host: "tcp://host:1/path", err: "HOST:PORT"},
		{host: "ssh://me@host", err: "ssh -nNT -L /tmp/engine.sock:/var/run/docker.sock me@host "},
		{host: "fd://", err: "fd:// is not supported"},
		{host: "/run/x.sock", err: "not an address"},
		{host: "", err: "not an address"},
	} {
		got, err := Endpoint{Host: tc.host, tls: tlsFiles{use: tc.tls}}.parse()
		if tc.err == "" && (err != nil || got != tc.want) || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%q: got %+v, %v; want %+v, %q", tc.host, got, err, tc.want, tc.err)
		}
	}
}

// fake is an engine that answers as the test wants it. No real one refuses an image, or lies, when it is asked to.
type fake struct {
	mu      sync.Mutex
	podman  bool
	images  map[string]inspected // by ID
	loads   [][]string           // the layers of each archive
	refuse  func(layers []string) string
	answers map[string]string // by path
	id      string            // of what is loaded
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if text, ok := f.answers[r.URL.Path]; ok {
		w.Header().Set("Api-Version", "1.41")
		io.WriteString(w, text)
		return
	}
	switch name := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/images/"), "/json"); {
	case r.URL.Path == "/_ping":
		w.Header().Set("Api-Version", "1.41")
		if f.podman {
			w.Header().Set("Libpod-Api-Version", "4.3.1")
		}
	case r.URL.Path == "/info":
		io.WriteString(w, `{"DriverStatus":[["Backing Filesystem","extfs"]]}`)
	case r.URL.Path == "/images/json":
		var list []map[string]string
		for id := range f.images {
			list = append(list, map[string]string{"Id": id})
		}
		json.NewEncoder(w).Encode(list)
	case r.URL.Path == "/images/load":
		var layers []string
		archive := tar.NewReader(r.Body)
		for {
			h, err := archive.Next()
			if err != nil {
				break
			}
			layers = append(layers, filepath.Base(h.Name))
		}
		f.loads = append(f.loads, layers)
		if text := f.refuse(layers); text != "" {
			json.NewEncoder(w).Encode(map[string]any{"errorDetail": map[string]string{"message": text}, "error": text})
			return
		}
		f.images["app"] = inspected{ID: f.id}
		io.WriteString(w, "{\"stream\":\"Loaded image: app\\n\"}\r\n")
	default:
		img, ok := f.images[name]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"message":"No such image"}`)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"Id": img.ID, "RootFS": map[string]any{"Layers": img.RootFS.Layers}})
	}
}

// start serves the engine at a socket.
func (f *fake) start(t *testing.T) Endpoint {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: f}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return Endpoint{Host: "unix://" + socket}
}

// image puts an image with layers of the given text into a store. Its last layer is as its first.
func image(t *testing.T, texts ...string) (*exporter.Blobs, *exporter.Assembled, []digest.Digest) {
	t.Helper()
	store, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	put := func(mediaType string, data []byte) ocispec.Descriptor {
		d, err := store.Put(mediaType, data)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var config ocispec.Image
	var m ocispec.Manifest
	for _, text := range texts {
		d := put(ocispec.MediaTypeImageLayer, []byte(text))
		m.Layers, config.RootFS.DiffIDs = append(m.Layers, d), append(config.RootFS.DiffIDs, d.Digest)
	}
	m.Config = put(ocispec.MediaTypeImageConfig, encode(config))
	desc := put(ocispec.MediaTypeImageManifest, encode(m))
	a := &exporter.Assembled{Desc: desc, Manifests: []exporter.Manifest{{Desc: desc, Manifest: m}}}
	return &exporter.Blobs{Store: store}, a, config.RootFS.DiffIDs
}

type nobody struct{}

func (nobody) Queued(ocispec.Descriptor)      {}
func (nobody) Sent(ocispec.Descriptor, int64) {}
func (nobody) Exists(ocispec.Descriptor)      {}

// TestOmitted holds which layers are not sent: Docker knows one by those below it, podman by itself. Where the engine does not have what it
// seemed to have, everything is sent.
func TestOmitted(t *testing.T) {
	blobs, a, ids := image(t, "one", "two", "three", "one")
	for _, tc := range []struct {
		name   string
		podman bool
		has    [][]digest.Digest
		refuse bool
		want   [][]int // the layers of each archive
	}{
		{name: "nothing is there", want: [][]int{{0, 1, 2}}},
		{name: "the lowest layers are there", has: [][]digest.Digest{{ids[0], ids[1]}, {ids[1]}}, want: [][]int{{0, 2}}},
		{name: "all are there", has: [][]digest.Digest{ids}, want: [][]int{{}}},
		{name: "they are on others", has: [][]digest.Digest{{ids[2], ids[1]}}, want: [][]int{{0, 1, 2}}},
		{name: "they are on others, for podman", podman: true, has: [][]digest.Digest{{ids[2], ids[1]}}, want: [][]int{{0}}},
		{name: "they are gone", podman: true, has: [][]digest.Digest{ids}, refuse: true, want: [][]int{{}, {0, 1, 2}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &fake{podman: tc.podman, images: map[string]inspected{}, id: string(a.Manifests[0].Manifest.Config.Digest)}
			for i, chain := range tc.has {
				img := inspected{ID: fmt.Sprint("sha256:", i)}
				img.RootFS.Layers = chain
				f.images[img.ID] = img
			}
			f.refuse = func(layers []string) string {
				if tc.refuse && !slices.Contains(layers, ids[0].Encoded()) {
					return "a layer is missing"
				}
				return ""
			}
			e, err := Open(t.Context(), f.start(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Load(t.Context(), blobs, a, []string{"app"}, nobody{}); err != nil {
				t.Fatal(err)
			}
			var got [][]int
			for _, layers := range f.loads {
				sent := []int{}
				for i, d := range ids[:3] {
					if slices.Contains(layers, d.Encoded()) {
						sent = append(sent, i)
					}
				}
				got = append(got, sent)
			}
			if !slices.EqualFunc(got, tc.want, slices.Equal) {
				t.Errorf("sent %v, want %v", got, tc.want)
			}
		})
	}
}

// TestHostile shows that what an engine says is bounded, and has no effect on a terminal, and that its success is not believed.
func TestHostile(t *testing.T) {
	blobs, a, _ := image(t, "one")
	never := func([]string) string { return "" }
	for _, tc := range []struct {
		name string
		fake *fake
		err  string
	}{
		{"not an engine", &fake{answers: map[string]string{"/info": "<html>"}}, "the answer to /info is not what Docker's API has there"},
		{"an endless list", &fake{answers: map[string]string{"/images/json": strings.Repeat(" ", maxAnswer+1)}}, "is larger than 16 MiB"},
		{"an endless message", &fake{answers: map[string]string{"/images/load": strings.Repeat("x", maxMessage+1)}}, "token too long"},
		{"escape sequences", &fake{refuse: func([]string) string { return "no\x1b[2J" }}, "the engine says: no [2J"},
		{"another image", &fake{id: "sha256:other", refuse: never}, "app is sha256:other, and was loaded as sha256:"},
		{"nothing happened", &fake{answers: map[string]string{"/images/load": "{}"}}, "the engine says: No such image"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.fake.images = map[string]inspected{}
			e, err := Open(t.Context(), tc.fake.start(t))
			if err == nil {
				err = e.Load(t.Context(), blobs, a, []string{"app"}, nobody{})
			}
			if err == nil || !strings.Contains(err.Error(), tc.err) || len(err.Error()) > 1000 {
				t.Errorf("error %v, want one with %q", err, tc.err)
			}
		})
	}
}

// TestCancelled shows that a load ends with its context, and that a lost blob is an error of the store.
func TestCancelled(t *testing.T) {
	blobs, a, ids := image(t, "one")
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := fmt.Errorf("stop")
	f := &fake{images: map[string]inspected{}, refuse: func([]string) string { cancel(stop); <-ctx.Done(); return "too late" }}
	e, err := Open(ctx, f.start(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Load(ctx, blobs, a, []string{"app"}, nobody{}); err != stop {
		t.Errorf("error %v, want %v", err, stop)
	}
	if err := blobs.Store.Remove(ids[0]); err != nil {
		t.Fatal(err)
	}
	err = e.Load(t.Context(), blobs, a, []string{"app"}, nobody{})
	if err == nil || strings.Contains(err.Error(), "use the engine") {
		t.Errorf("error %v, want one of the store", err)
	}
}

// TestTLS shows how an engine is reached by TLS, and what is said where that is missing.
func TestTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(&fake{images: map[string]inspected{}})
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_HOST", "tcp://"+server.Listener.Addr().String())
	for _, tc := range []struct{ verify, tls, certs, err string }{
		{err: "if it speaks TLS, set DOCKER_TLS_VERIFY=1"},
		{verify: "1", certs: dir},
		{tls: "1", certs: t.TempDir()},
		{verify: "1", certs: t.TempDir(), err: "the directory of ca.pem, cert.pem and key.pem is "},
	} {
		t.Setenv("DOCKER_TLS_VERIFY", tc.verify)
		t.Setenv("DOCKER_TLS", tc.tls)
		t.Setenv("DOCKER_CERT_PATH", tc.certs)
		at, err := Find()
		if err == nil {
			_, err = Open(t.Context(), at)
		}
		if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%+v: error %v", tc, err)
		}
	}
}
