package attached

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/layout"
	"github.com/kilnbuild/kiln/registry/registrytest"
	"github.com/kilnbuild/kiln/signature"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func newKey(t *testing.T) *signing.PrivateKey {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("openssl", "genpkey", "-algorithm", "ed25519", "-out", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	key, err := signing.ReadPrivateKey(file, signing.Password)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newImage puts an image without layers into a store.
func newImage(t *testing.T) (*cas.Store, ocispec.Descriptor) {
	t.Helper()
	store, err := cas.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	config, err := store.Put(ocispec.MediaTypeImageConfig, []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`))
	if err != nil {
		t.Fatal(err)
	}
	desc, err := store.Put(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"mediaType":"`+ocispec.MediaTypeImageManifest+
		`","config":{"mediaType":"`+config.MediaType+`","digest":"`+config.Digest.String()+`","size":`+strconv.FormatInt(config.Size, 10)+`},"layers":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	return store, desc
}

// serve serves a registry in memory that lists referrers, whose requests go through a function first that may answer them.
func serve(t *testing.T, before func(w http.ResponseWriter, r *http.Request) (answered bool)) string {
	t.Helper()
	reg := ggcr.New(ggcr.WithReferrersSupport(true), ggcr.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !before(w, r) {
			reg.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func repository(t *testing.T, ref string) Repository {
	t.Helper()
	n, err := imagename.Parse(ref)
	if err != nil {
		t.Fatal(err)
	}
	return Repository{Client: registry.New(nil), Name: n}
}

func silent(string) {}

// verified returns how many signatures by a key there are.
func verified(t *testing.T, src Source, desc ocispec.Descriptor, key *signing.PrivateKey) (n int) {
	t.Helper()
	found, err := Find(t.Context(), src, desc.Digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range found {
		if _, err := c.Verify(desc.Digest, []*signing.PublicKey{key.Public()}); err == nil {
			n++
		} else if !errors.Is(err, signature.ErrOtherKey) {
			t.Errorf("%s: %v", c.From, err)
		}
	}
	return n
}

// A registry that lists referrers itself gets no list from kiln; one that does not gets one. Signing again changes nothing.
func TestSign(t *testing.T) {
	lists := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			w.Header().Set("OCI-Subject", "it has one")
		}
		return false
	})
	for host, tags := range map[string]int{lists: 2, registrytest.Start(t).Host: 3} {
		store, desc := newImage(t)
		one, two := newKey(t), newKey(t)
		r := repository(t, host+"/app:v1")
		err := Push(t.Context(), r.Client, store, []string{host + "/app:v1"}, desc, []*signing.PrivateKey{one}, registry.PushOptions{}, silent)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := r.Sign(t.Context(), desc, store, []*signing.PrivateKey{one, two}); err != nil {
				t.Fatal(err)
			}
		}
		for _, key := range []*signing.PrivateKey{one, two} {
			if n := verified(t, r, desc, key); n != 2 {
				t.Errorf("%s: %d signatures of one key, and one in each form is expected", host, n)
			}
		}
		if n := verified(t, r, desc, newKey(t)); n != 0 {
			t.Errorf("%s: %d signatures of a key that has made none", host, n)
		}
		all, err := r.Client.Tags(t.Context(), r.Name.String(), "")
		if err != nil || len(all) != tags {
			t.Errorf("%s has the tags %q, %v", host, all, err)
		}
	}
}

// If a signature is refused, the image has no tag, and the error says what is where.
func TestRefused(t *testing.T) {
	for _, what := range []string{".sig", "/manifests/sha256:"} {
		images := 0
		host := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
			put := r.Method == http.MethodPut && strings.Contains(r.URL.Path, what)
			if put && what != ".sig" {
				images++ // the first one is the image itself
				put = images > 1
			}
			if put {
				w.WriteHeader(http.StatusForbidden)
			}
			return put
		})
		store, desc := newImage(t)
		r := repository(t, host+"/app:v1")
		names := []string{host + "/app:v1", host + "/app:v2"}
		err := Push(t.Context(), r.Client, store, names, desc, []*signing.PrivateKey{newKey(t)}, registry.PushOptions{}, silent)
		unsigned, ok := errors.AsType[*UnsignedError](err)
		if !ok || unsigned.Image != host+"/app@"+desc.Digest.String() || !strings.Contains(err.Error(), unsigned.Image) {
			t.Errorf("%s: %v", what, err)
		}
		for _, tag := range []string{"v1", "v2"} {
			if data, err := r.Tagged(t.Context(), tag); data != nil || err != nil {
				t.Errorf("%s: there is a tag %s: %s, %v", what, tag, data, err)
			}
		}
	}
}

// A registry that does not answer is an error, and not an image without signatures.
func TestOutage(t *testing.T) {
	for _, path := range []string{".sig", "/referrers/"} {
		host := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
			refused := strings.Contains(r.URL.Path, path)
			if refused {
				w.WriteHeader(http.StatusForbidden)
			}
			return refused
		})
		_, desc := newImage(t)
		if found, err := Find(t.Context(), repository(t, host+"/app"), desc.Digest); err == nil {
			t.Errorf("%s: %d candidates", path, len(found))
		}
	}
}

// Signatures travel with an image into a layout, in either form.
func TestLayout(t *testing.T) {
	host := serve(t, func(http.ResponseWriter, *http.Request) bool { return false })
	store, desc := newImage(t)
	key := newKey(t)
	r := repository(t, host+"/app:v1")
	err := Push(t.Context(), r.Client, store, []string{host + "/app:v1"}, desc, []*signing.PrivateKey{key}, registry.PushOptions{}, silent)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// add copies a manifest and its layers.
	add := func(data []byte) ocispec.Descriptor {
		var m ocispec.Manifest
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			content, err := r.Blob(t.Context(), l, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			write("blobs/sha256/"+l.Digest.Encoded(), content)
		}
		d := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data)), ArtifactType: m.ArtifactType}
		write("blobs/sha256/"+d.Digest.Encoded(), data)
		return d
	}
	tagged, err := r.Tagged(t.Context(), Tag(desc.Digest))
	if err != nil {
		t.Fatal(err)
	}
	simple := add(tagged)
	simple.Annotations = map[string]string{ocispec.AnnotationRefName: "example.com/app:" + Tag(desc.Digest)}
	list, err := r.Referrers(t.Context(), desc.Digest)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	referrer, err := r.Manifest(t.Context(), list[0])
	if err != nil {
		t.Fatal(err)
	}
	index, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{desc, simple, add(referrer)}})
	if err != nil {
		t.Fatal(err)
	}
	write(ocispec.ImageIndexFile, index)
	write(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	l, err := layout.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if n := verified(t, Layout{l}, desc, key); n != 2 {
		t.Errorf("%d signatures", n)
	}
}
