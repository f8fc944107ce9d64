package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/registry/registrytest"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pushed is a PushProgress that notes everything.
type pushed struct {
	mu            sync.Mutex
	sent          map[digest.Digest]int64
	queued, exist []digest.Digest
}

func (p *pushed) Queued(d ocispec.Descriptor) { p.queued = append(p.queued, d.Digest) }

func (p *pushed) Sent(d ocispec.Descriptor, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent[d.Digest] = n
}

func (p *pushed) Exists(d ocispec.Descriptor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exist = append(p.exist, d.Digest)
}

// A push of what a name stands for already sends what the registry has lost meanwhile: the manifest is put before anything is asked for, and
// refused.
func TestPushNamedAgain(t *testing.T) {
	reg := registrytest.Start(t)
	s := newStore(t)
	desc := makeImage(t, s, amd64, 10, 3<<20)
	ref := reg.Host + "/app:v1"
	if err := New(nil).Push(t.Context(), s, ref, desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	img, err := New(nil).Resolve(t.Context(), ref, amd64, newStore(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, lost := range append([]ocispec.Descriptor{img.Manifest.Config}, img.Manifest.Layers...) {
		hex := lost.Digest.Encoded()
		if err := os.Remove(filepath.Join(reg.Dir, "docker/registry/v2/blobs/sha256", hex[:2], hex, "data")); err != nil {
			t.Fatal(err)
		}
		told := &pushed{sent: map[digest.Digest]int64{}}
		c := New(nil)
		if err := errors.Join(c.CheckPush(t.Context(), ref), c.Push(t.Context(), s, ref, desc, PushOptions{Progress: told})); err != nil {
			t.Fatal(err)
		}
		if told.sent[lost.Digest] != lost.Size || len(told.exist) != 2 {
			t.Errorf("of %s %d bytes were sent, and %d blobs existed", lost.Digest, told.sent[lost.Digest], len(told.exist))
		}
		if _, err := Pull(t.Context(), New(nil), ref, amd64, newStore(t)); err != nil {
			t.Errorf("after the loss of %s: %v", lost.Digest, err)
		}
	}
}

// TestRoundTrip pushes an image, has skopeo and go-containerregistry check it, and pulls it into another store.
func TestRoundTrip(t *testing.T) {
	reg := registrytest.Start(t)
	from, to := newStore(t), newStore(t)
	desc := makeImage(t, from, amd64, 10, 3<<20, 0)
	ref := reg.Host + "/team/app:v1"
	told := &pushed{sent: map[digest.Digest]int64{}}
	c := New(nil)
	if err := c.Push(t.Context(), from, ref, desc, PushOptions{Progress: told}); err != nil {
		t.Fatal(err)
	}
	if len(told.queued) != 4 || len(told.exist) != 0 {
		t.Errorf("%d blobs were queued, and %d existed", len(told.queued), len(told.exist))
	}
	again := &pushed{sent: map[digest.Digest]int64{}}
	if err := c.Push(t.Context(), from, ref, desc, PushOptions{Progress: again}); err != nil {
		t.Fatal(err)
	}
	if len(again.exist) != 4 || len(again.sent) != 0 {
		t.Errorf("of blobs that the registry has %d existed, and %d were sent", len(again.exist), len(again.sent))
	}
	done := told.sent
	img, err := Pull(t.Context(), c, ref, amd64, to)
	if err != nil {
		t.Fatal(err)
	}
	if img.Desc.Digest != desc.Digest || img.Target.Digest != desc.Digest || !img.PlatformMatches || img.Ref != ref {
		t.Errorf("pulled %+v", img)
	}
	for _, layer := range img.Manifest.Layers {
		if !to.Has(layer) {
			t.Errorf("layer %s is not in the store", layer.Digest)
		}
		if done[layer.Digest] != layer.Size {
			t.Errorf("progress of %s ended at %d of %d", layer.Digest, done[layer.Digest], layer.Size)
		}
	}
	if out, err := exec.Command("skopeo", "inspect", "--tls-verify=false", "docker://"+ref).CombinedOutput(); err != nil {
		t.Errorf("skopeo inspect: %v\n%s", err, out)
	}
	dir := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("skopeo", "copy", "--src-tls-verify=false", "docker://"+ref, "oci:"+dir+":x").CombinedOutput(); err != nil {
		t.Fatalf("skopeo copy: %v\n%s", err, out)
	}
	p, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
}

func TestIndexRoundTrip(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	arm := ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	a, b := makeImage(t, from, amd64, 100), makeImage(t, from, arm, 100)
	inner := makeIndex(t, from, b)
	index := makeIndex(t, from, a, inner)
	ref := reg.Host + "/multi"
	c := New(nil)
	if err := c.Push(t.Context(), from, ref, index, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		p    ocispec.Platform
		want digest.Digest
	}{{amd64, a.Digest}, {arm, b.Digest}, {ocispec.Platform{OS: "linux", Architecture: "aarch64"}, b.Digest}} {
		s := newStore(t)
		for range 2 { // the second time most comes from the store
			img, err := c.Resolve(t.Context(), ref, x.p, s)
			if err != nil {
				t.Fatal(err)
			}
			if img.Desc.Digest != x.want || img.Target.Digest != index.Digest || img.Target.MediaType != ocispec.MediaTypeImageIndex || !img.PlatformMatches {
				t.Errorf("for %s: %+v", image.PlatformName(x.p), img)
			}
		}
		if img, err := c.Resolve(t.Context(), ref+"@"+string(index.Digest), x.p, s); err != nil || img.Desc.Digest != x.want {
			t.Errorf("by digest: %+v, %v", img, err)
		}
	}
	_, err := c.Resolve(t.Context(), ref, ocispec.Platform{OS: "linux", Architecture: "s390x"}, newStore(t))
	p, ok := errors.AsType[*image.PlatformError](err)
	if !ok || p.Want != "linux/s390x" || !slices.Contains(p.Have, "linux/amd64") {
		t.Errorf("a platform that is not there: %v", err)
	}
}

// TestSingleImage uses an image for another platform when there is no choice, and says so.
func TestSingleImage(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, ocispec.Platform{OS: "linux", Architecture: "arm64"}, 10)
	c := New(nil)
	if err := c.Push(t.Context(), from, reg.Host+"/arm", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	img, err := c.Resolve(t.Context(), reg.Host+"/arm", amd64, newStore(t))
	if err != nil || img.PlatformMatches || img.Platform.Architecture != "arm64" {
		t.Errorf("Resolve = %+v, %v", img, err)
	}
}

// TestManifestRequests: registries count what is got. A store that may have the manifest asks for its digest first; one that
// cannot have it saves itself that.
func TestManifestRequests(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	if err := New(nil).Push(t.Context(), from, reg.Host+"/app", makeImage(t, from, amd64, 10), PushOptions{}); err != nil {
		t.Fatal(err)
	}
	counted := newFault(t, reg.Host, nil)
	store := newStore(t)
	for i, want := range []string{"0 HEAD, 1 GET", "1 HEAD, 1 GET", "2 HEAD, 1 GET"} {
		if _, err := New(nil).Resolve(t.Context(), counted.host+"/app", amd64, store); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%d HEAD, %d GET", counted.count("HEAD /v2/app/manifests/"), counted.count("GET /v2/app/manifests/")); got != want {
			t.Errorf("after %d: %s, want %s", i+1, got, want)
		}
	}
}

func TestMirrors(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 10)
	c := quick(config.Registries{"docker.io": {Mirrors: []string{"127.0.0.1:1", reg.Host}}, reg.Host: {HTTP: true}})
	if err := c.Push(t.Context(), from, reg.Host+"/library/thing", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	img, err := Pull(t.Context(), c, "thing", amd64, newStore(t))
	if err != nil {
		t.Fatal(err)
	}
	if img.Ref != "docker.io/library/thing:latest" || img.Desc.Digest != desc.Digest {
		t.Errorf("%+v", img)
	}
	proxy := newFault(t, reg.Host, func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if !strings.HasPrefix(r.URL.Path, "/v2/cache/hub/") || r.URL.Query().Get("ns") != "docker.io" {
			http.NotFound(w, r)
			return true
		}
		r.URL.Path = "/v2/" + strings.TrimPrefix(r.URL.Path, "/v2/cache/hub/")
		return false
	})
	c = quick(config.Registries{"docker.io": {Mirrors: []string{proxy.host + "/cache/hub/"}}})
	if _, err := Pull(t.Context(), c, "thing", amd64, newStore(t)); err != nil {
		t.Errorf("a mirror with a prefix: %v", err)
	}
}

// TestMirrorFallback goes from a mirror that lacks the image, or has a wrong one, to the next.
func TestMirrorFallback(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 200_000)
	if err := New(nil).Push(t.Context(), from, reg.Host+"/library/thing", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	liar := newFault(t, reg.Host, func(w http.ResponseWriter, r *http.Request, pass http.Handler) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		rec := recordResponse(pass, r)
		rec.body[len(rec.body)/2] ^= 1
		rec.write(w)
		return true
	})
	c := quick(config.Registries{"docker.io": {Mirrors: []string{liar.host, reg.Host}}})
	if _, err := Pull(t.Context(), c, "thing", amd64, newStore(t)); err != nil {
		t.Errorf("the second mirror has it: %v", err)
	}
}

func TestErrors(t *testing.T) {
	reg := registrytest.Start(t)
	c := quick(nil)
	_, err := c.Resolve(t.Context(), reg.Host+"/nothing/here:x", amd64, newStore(t))
	e := wantKind(t, err, NotFound)
	if e.Status != 404 || e.Registry != reg.Host || e.Repository != "nothing/here" || !strings.Contains(e.Error(), "access is denied or it does not exist") {
		t.Errorf("%+v", e)
	}
	_, err = c.Resolve(t.Context(), "127.0.0.1:1/x", amd64, newStore(t))
	wantKind(t, err, Unreachable)
	for _, bad := range []string{"", "UPPER", "a/../b", "a//b", "a/./b", "x:ta g", "x@sha256:abc", "x@sha512:" + strings.Repeat("a", 128), "host:99999999/x", strings.Repeat("a", 2000), "x@", "x:-tag", "a b", "../etc"} {
		_, err := c.Resolve(t.Context(), bad, amd64, newStore(t))
		if _, asked := errors.AsType[*Error](err); err == nil || asked {
			t.Errorf("%q was looked for: %v", bad, err)
		}
	}
}

// TestMount finds the base's blobs mounted instead of sent.
func TestMount(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 100_000)
	front := newFault(t, reg.Host, nil)
	c := quick(nil)
	if err := c.Push(t.Context(), from, front.host+"/base", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	sent := front.sent()
	if sent == 0 {
		t.Fatal("nothing is counted as sent")
	}
	mounts := map[digest.Digest]string{}
	if err := from.Blobs(func(d digest.Digest, _ int64) error { mounts[d] = front.host + "/base"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := c.Push(t.Context(), from, front.host+"/derived", desc, PushOptions{MountFrom: mounts}); err != nil {
		t.Fatal(err)
	}
	if n := front.sent() - sent; n != 0 {
		t.Errorf("%d blobs were sent", n)
	}
	// What is there is not even asked to be mounted, and a source that has nothing does not hinder.
	posts := front.count("POST")
	if err := c.Push(t.Context(), from, front.host+"/derived:again", desc, PushOptions{MountFrom: mounts}); err != nil {
		t.Fatal(err)
	}
	if n := front.count("POST") - posts; n != 0 {
		t.Errorf("%d uploads were begun for blobs that are there", n)
	}
	other := makeImage(t, from, amd64, 50_000)
	if err := from.Blobs(func(d digest.Digest, _ int64) error { mounts[d] = front.host + "/nowhere"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := c.Push(t.Context(), from, front.host+"/other", other, PushOptions{MountFrom: mounts}); err != nil {
		t.Error(err)
	}
}

// TestMountFromMirror finds the blobs mounted of a base that came through the registry that is pushed to, as a mirror.
func TestMountFromMirror(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 100_000)
	front := newFault(t, reg.Host, nil)
	c := quick(map[string]config.Registry{"base.example": {Mirrors: []string{front.host + "/proxy"}}})
	if err := c.Push(t.Context(), from, front.host+"/proxy/team/base", desc, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	sent := front.sent()
	if sent == 0 {
		t.Fatal("nothing is counted as sent")
	}
	mounts := map[digest.Digest]string{}
	if err := from.Blobs(func(d digest.Digest, _ int64) error { mounts[d] = "base.example/team/base"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := c.Push(t.Context(), from, front.host+"/app", desc, PushOptions{MountFrom: mounts}); err != nil {
		t.Fatal(err)
	}
	if n := front.sent() - sent; n != 0 {
		t.Errorf("%d blobs were sent", n)
	}
}

// TestPushOrder has every blob there before a manifest, and the tag last.
func TestPushOrder(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	index := makeIndex(t, from, makeImage(t, from, amd64, 10, 20), makeImage(t, from, ocispec.Platform{OS: "linux", Architecture: "arm64"}, 30))
	front := newFault(t, reg.Host, nil)
	if err := quick(nil).Push(t.Context(), from, front.host+"/app:v1", index, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	front.checkOrder(t)
	if last := front.calls[len(front.calls)-1]; last != "PUT /v2/app/manifests/v1" {
		t.Errorf("last came %s", last)
	}
}

// TestPushHalfAttested leaves no index and no tag where a registry does not take the attestations, or a part of them.
func TestPushHalfAttested(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	image := makeImage(t, from, amd64, 10)
	statement := registrytest.Put(t, from, attestation.MediaType, []byte(`{"_type":"https://in-toto.io/Statement/v1"}`))
	beside := registrytest.Put(t, from, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: attestation.ArtifactType,
		Config: registrytest.Put(t, from, ocispec.MediaTypeEmptyJSON, []byte("{}")), Layers: []ocispec.Descriptor{statement}, Subject: &image,
	})
	unknown := attestation.Unknown()
	beside.Platform = &unknown
	beside.Annotations = map[string]string{attestation.TypeAnnotation: attestation.TypeManifest, attestation.DigestAnnotation: image.Digest.String()}
	index := makeIndex(t, from, image, beside)
	for _, c := range []struct { // in this order: the second push leaves the statement
		what   string
		digest digest.Digest
	}{{"the statement", statement.Digest}, {"their manifest", beside.Digest}} {
		what, d := c.what, c.digest
		front := newFault(t, reg.Host, func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			refused := r.Method == http.MethodPut && (strings.HasSuffix(r.URL.Path, d.String()) || r.URL.Query().Get("digest") == d.String())
			if refused {
				w.WriteHeader(http.StatusBadRequest)
			}
			return refused
		})
		if err := quick(nil).Push(t.Context(), from, front.host+"/attested:v1", index, PushOptions{}); err == nil {
			t.Errorf("%s was refused, and the push succeeds", what)
		}
		if n := front.count("PUT /v2/attested/manifests/v1"); n > 0 {
			t.Errorf("%s was refused, and the tag was pushed", what)
		}
	}
	front := newFault(t, reg.Host, nil)
	if err := quick(nil).Push(t.Context(), from, front.host+"/attested:v1", index, PushOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestPushCorrupt refuses to send what the store has wrong.
func TestPushCorrupt(t *testing.T) {
	reg := registrytest.Start(t)
	from := newStore(t)
	desc := makeImage(t, from, amd64, 100_000)
	bad := corrupt{from}
	front := newFault(t, reg.Host, nil)
	err := quick(nil).Push(t.Context(), bad, front.host+"/app", desc, PushOptions{})
	if err == nil {
		t.Fatal("pushed")
	}
	if n := front.count("PUT /v2/app/manifests/"); n != 0 {
		t.Errorf("%d manifests were put", n)
	}
}

// corrupt is a store whose layers have a wrong byte.
type corrupt struct{ *cas.Store }

func (c corrupt) Open(desc ocispec.Descriptor) (io.ReadCloser, error) {
	data, err := c.ReadAll(desc, 0)
	if err != nil || desc.MediaType != ocispec.MediaTypeImageLayerGzip {
		return io.NopCloser(bytes.NewReader(data)), err
	}
	data[len(data)/2] ^= 1
	return cas.VerifyReader(io.NopCloser(bytes.NewReader(data)), desc, "test"), nil
}
