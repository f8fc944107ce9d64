package remote

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/solver"
)

func blobOf(text string) (ocispec.Descriptor, func() (io.ReadCloser, error)) {
	return ocispec.Descriptor{MediaType: "text/plain", Digest: digest.FromString(text), Size: int64(len(text))}, bytesOf([]byte(text))
}

// one returns a pack with one record and no layer.
func one(name string) *pack.Pack {
	p := &pack.Pack{}
	r := pack.Record{Version: solver.KeyVersion, Used: time.Now().Truncate(time.Second)}
	r.Inputs = []solver.Input{{Name: "step", Value: name}}
	p.AddRecord(solver.KeyOf(r.Inputs), r)
	return p
}

// far is a repository whose requests take a trip each, of the time of a synctest bubble; it sends blobs as a registry is sent them.
type far struct {
	Repository
	mu       sync.Mutex
	requests int
}

const trip = time.Second

func (f *far) travel(trips int) {
	f.mu.Lock()
	f.requests += trips
	f.mu.Unlock()
	time.Sleep(time.Duration(trips) * trip)
}

func (f *far) Get(ctx context.Context, tag string) ([]byte, error) {
	f.travel(1)
	return f.Repository.Get(ctx, tag)
}

func (f *far) Set(ctx context.Context, tag, mediaType string, data []byte) error {
	f.travel(1)
	return f.Repository.Set(ctx, tag, mediaType, data)
}

func (f *far) Tags(ctx context.Context, prefix string) ([]string, error) {
	f.travel(1)
	return f.Repository.Tags(ctx, prefix)
}

func (f *far) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	f.travel(1)
	return f.Repository.Open(ctx, desc)
}

func (f *far) Put(ctx context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	if desc.MediaType != pack.Type {
		f.travel(1) // HEAD
		if r, err := f.Repository.Open(ctx, desc); err == nil {
			return r.Close()
		}
	}
	f.travel(2) // POST, PUT
	return f.Repository.Put(ctx, desc, open)
}

// What is left to do when a build ends takes few requests one after the other, whatever others have published before and meanwhile.
func TestPublishTrips(t *testing.T) {
	dir, err := CreateDir(t.TempDir(), "cache")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, tc := range []struct {
		name      string
		meanwhile int // how many records somebody else publishes between Prepare and Publish, of the same build
		prepare   int
		trips     int
	}{
		// The cache and the list of tags; POST and PUT of the sum; the manifests; the cache and the list of tags.
		{"the first", 0, 3, 5},
		{"the second", 0, 1, 5},
		{"after another", 1, 1, 5},
		// In addition, the records of the cache, which are too large to be in its manifest.
		{"after many", 4000, 1, 6},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &far{Repository: dir}
			w := NewWriter(f, "cache")
			began := time.Now()
			w.Prepare(t.Context())
			if got := int(time.Since(began) / trip); got != tc.prepare {
				t.Errorf("%s: Prepare takes %d requests one after the other, want %d", tc.name, got, tc.prepare)
			}
			others := &pack.Pack{}
			for range tc.meanwhile {
				others.Add(one(rand.Text()))
			}
			if tc.meanwhile > 0 {
				if _, err := Publish(t.Context(), dir, "cache", others, pack.Limit{}); err != nil {
					t.Fatal(err)
				}
			}
			began = time.Now()
			layers := make(chan struct{})
			go func() {
				time.Sleep(3 * trip) // they are asked for and sent at the same time
				close(layers)
			}()
			sent := func(context.Context) error {
				<-layers
				return nil
			}
			p, err := w.Publish(t.Context(), one(tc.name), pack.Limit{}, sent)
			if err != nil || !p.Has(one(tc.name), Slack) {
				t.Fatal(err)
			}
			if got := int(time.Since(began) / trip); got != tc.trips {
				t.Errorf("%s: Publish takes %d requests one after the other, want %d", tc.name, got, tc.trips)
			}
			// What is there is not published again.
			f.requests = 0
			again := NewWriter(f, "cache")
			h, err := Read(t.Context(), dir, "cache")
			if err != nil {
				t.Fatal(err)
			}
			again.Knows(h)
			if _, err := again.Publish(t.Context(), one(tc.name), pack.Limit{}, sent); err != nil || f.requests > 4 {
				t.Errorf("%s: what is there takes %d requests, %v", tc.name, f.requests, err)
			}
		})
	}
}

// A cache is read with one request, and one that is too large to be in its manifest, or was written by an older kiln, with two. A document
// of an image is not waited for then.
func TestReadTrips(t *testing.T) {
	many := &pack.Pack{}
	for range 4000 {
		many.Add(one(rand.Text()))
	}
	for _, tc := range []struct {
		name   string
		pack   *pack.Pack
		change func([]byte) []byte
		trips  int
		known  bool
	}{
		{"small", one("step"), nil, 1, true},
		{"large", many, nil, 2, false},
		{"of an older kiln", one("step"), func(data []byte) []byte { return embedded.ReplaceAll(data, nil) }, 2, false},
	} {
		dir, err := CreateDir(t.TempDir(), "cache")
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		tc.pack.AddDocument(pack.Document{Text: "config", Used: time.Now()})
		if _, err := Publish(t.Context(), dir, "cache", tc.pack, pack.Limit{}); err != nil {
			t.Fatal(err)
		}
		data, err := dir.Get(t.Context(), "cache")
		if err != nil || len(data) > maxEmbedding {
			t.Fatalf("%s: a manifest of %d bytes, %v", tc.name, len(data), err)
		}
		if tc.change != nil {
			if err := dir.Set(t.Context(), "cache", ocispec.MediaTypeImageManifest, tc.change(data)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			im := Begin(t.Context(), []*Import{{Repository: &far{Repository: dir}, Tag: "cache"}}, func(text string) { t.Error(text) })
			known := im.Document(t.Context(), digest.FromString("config"))
			if got := time.Since(began) / trip; (string(known) == "config") != tc.known || got != 1 {
				t.Errorf("%s: a document that is %q after %d requests", tc.name, known, got)
			}
			if _, ok, err := im.Record(t.Context(), solver.KeyOf([]solver.Input{{Name: "step", Value: "x"}})); ok || err != nil {
				t.Error(ok, err)
			}
			if got := int(time.Since(began) / trip); got != tc.trips {
				t.Errorf("%s: it takes %d requests one after the other, want %d", tc.name, got, tc.trips)
			}
			if known := im.Document(t.Context(), digest.FromString("config")); string(known) != "config" {
				t.Errorf("%s: the document is %q", tc.name, known)
			}
			if known := im.Document(t.Context(), digest.FromString("other")); known != nil {
				t.Errorf("%s: a document that nobody has is %q", tc.name, known)
			}
		})
	}
}

// embedded is what a manifest has of its records.
var embedded = regexp.MustCompile(`,"data":"[^"]*"`)

// overtaken is a repository in which somebody else puts the cache's tag just after every writer has, for some time.
type overtaken struct {
	Repository
	times int
	stale []byte
}

func (o *overtaken) Set(ctx context.Context, tag, mediaType string, data []byte) error {
	if err := o.Repository.Set(ctx, tag, mediaType, data); err != nil || tag != "cache" || o.times == 0 {
		return err
	}
	o.times--
	return o.Repository.Set(ctx, tag, mediaType, o.stale)
}

func TestOvertaken(t *testing.T) {
	dir, err := CreateDir(t.TempDir(), "cache")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := Publish(t.Context(), dir, "cache", one("first"), pack.Limit{}); err != nil {
		t.Fatal(err)
	}
	stale, err := dir.Get(t.Context(), "cache")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Publish(t.Context(), &overtaken{dir, 5, stale}, "cache", one("second"), pack.Limit{})
	if err != nil || !p.Has(one("first"), time.Hour) || !p.Has(one("second"), time.Hour) {
		t.Errorf("%+v, %v", p, err)
	}
}

// What a writer left that did not come to its end is taken up by the next one.
func TestLeftEntry(t *testing.T) {
	dir, err := CreateDir(t.TempDir(), "cache")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	old := fmt.Sprintf("cache%s%x-x", entryInfix, time.Now().Add(-2*settleTime).Unix())
	for tag, p := range map[string]*pack.Pack{old: one("old"), "cache" + entryInfix + "what": one("other")} {
		if _, err := write(t.Context(), dir, tag, p, nil, ""); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Publish(t.Context(), dir, "cache", one("mine"), pack.Limit{})
	if err != nil || !p.Has(one("old"), time.Hour) || !p.Has(one("other"), time.Hour) || !p.Has(one("mine"), time.Hour) {
		t.Errorf("%+v, %v", p, err)
	}
	if tags, _ := dir.Tags(t.Context(), old); len(tags) > 0 {
		t.Error("an old entry that the cache includes is still there")
	}
	// A writer that has read the cache before may yet put it without the records: they are in an entry that stays.
	taken := false
	tags, err := dir.Tags(t.Context(), "cache"+entryInfix)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range tags {
		e, err := Read(t.Context(), dir, tag)
		taken = taken || err == nil && !settled(tag) && e.Pack.Has(one("old"), time.Hour)
	}
	if !taken {
		t.Error("an old entry was removed, and no other has its records")
	}
}

func TestReadOfSomethingElse(t *testing.T) {
	dir, err := CreateDir(t.TempDir(), "cache")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	empty, open := blobOf("{}")
	if err := dir.Put(t.Context(), empty, open); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, data, want string
		replaced         bool
	}{
		{"an image", `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + string(empty.Digest) + `","size":2},"layers":[]}`, "but an image without one", false},
		{"an image of a large config", `{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + string(empty.Digest) + `","size":9999999}}`, "of 9999999 bytes", false},
		{"an index", `{"schemaVersion":2,"manifests":[{"digest":"x"}]}`, "an index of something else", false},
		{"BuildKit's", `{"config":{"mediaType":"application/vnd.buildkit.cacheconfig.v0"}}`, "BuildKit", false},
		{"a later version", `{"artifactType":"` + pack.ArtifactType + `","layers":[{"mediaType":"application/vnd.kiln.cache.pack.v9"}]}`, "later version", false},
		{"no JSON", `hello`, "not JSON", true},
		{"without its records", `{"artifactType":"` + pack.ArtifactType + `","layers":[{"mediaType":"` + pack.Type + `","digest":"` + string(digest.FromString("y")) + `","size":1}]}`, "gone", true},
		{"with other records embedded", `{"artifactType":"` + pack.ArtifactType + `","layers":[{"mediaType":"` + pack.Type + `","digest":"` +
			string(empty.Digest) + `","size":2,"data":"e30K"}]}`, "damaged", true},
		{"with fewer records embedded", `{"artifactType":"` + pack.ArtifactType + `","layers":[{"mediaType":"` + pack.Type + `","digest":"` +
			string(empty.Digest) + `","size":2,"data":"ew=="}]}`, "damaged", true},
		{"with other records", `{"artifactType":"` + pack.ArtifactType + `","layers":[{"mediaType":"` + pack.Type + `","digest":"` + string(empty.Digest) + `","size":2}]}`, "damaged", true},
	} {
		if err := dir.Set(t.Context(), "cache", ocispec.MediaTypeImageManifest, []byte(tc.data)); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(t.Context(), dir, "cache"); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		_, err := Publish(t.Context(), dir, "cache", one("x"), pack.Limit{})
		if (err == nil) != tc.replaced {
			t.Errorf("%s: publish: %v", tc.name, err)
		}
	}
}

// No link in a directory that somebody else has made leads out of it.
func TestDirIsAll(t *testing.T) {
	top := t.TempDir()
	secret := filepath.Join(top, "secret")
	if err := os.WriteFile(secret, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := CreateDir(filepath.Join(top, "cache"), "cache")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	desc, _ := blobOf("hello")
	if err := os.Symlink(secret, filepath.Join(top, "cache/blobs/sha256", desc.Digest.Encoded())); err != nil {
		t.Fatal(err)
	}
	if f, err := dir.Open(t.Context(), desc); err == nil {
		f.Close()
		t.Error("a blob was read outside of the directory")
	}
}

func TestImports(t *testing.T) {
	dir, err := CreateDir(t.TempDir(), "cache")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	p := one("step")
	content := solver.Content{1}
	id := layer.ID(strings.Repeat("a", 64))
	manifest, _ := blobOf("manifest")
	tarball, open := blobOf("tar")
	tarball.MediaType = ocispec.MediaTypeImageLayerGzip
	p.AddLayer(pack.Layer{ID: id, Content: content, Manifest: manifest, Blobs: map[string]pack.Blob{"gzip": {Desc: tarball, DiffID: tarball.Digest}}})
	key := solver.KeyOf([]solver.Input{{Name: "step", Value: "step"}})
	r := p.Records[key]
	r.Outputs = []solver.Made{{Layer: solver.Layer{ID: string(id), Content: content}}}
	p.AddRecord(key, r)
	if err := dir.Put(t.Context(), tarball, open); err != nil {
		t.Fatal(err)
	}
	if _, err := Publish(t.Context(), dir, "cache", p, pack.Limit{}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var warnings []string
	im := Begin(t.Context(), []*Import{{Repository: dir, Tag: "none"}, {Repository: dir, Tag: "cache"}}, func(text string) {
		mu.Lock()
		defer mu.Unlock()
		warnings = append(warnings, text)
	})
	if _, ok, err := im.Record(t.Context(), key); err != nil || !ok {
		t.Errorf("the record is not found: %v", err)
	}
	b, in, ok := im.Blob(id, "")
	f, err := im.Open(t.Context(), id, b.Desc)
	if !ok || in != "gzip" || err != nil {
		t.Fatalf("blob %v in %s, %v", b, in, err)
	}
	data, err := io.ReadAll(f)
	if f.Close(); err != nil || !bytes.Equal(data, []byte("tar")) {
		t.Errorf("%q, %v", data, err)
	}
	_, err = im.Manifest(t.Context(), id)
	gone, ok := errors.AsType[*GoneError](err)
	if !ok || gone.Layer != id {
		t.Fatalf("a manifest that is not there: %v", err)
	}
	im.Drop(gone)
	im.Drop(gone)
	if r, ok, _ := im.Record(t.Context(), key); !ok || im.Has(r.Outputs[0].Layer) {
		t.Errorf("of a record whose layer is gone there is more left than what it made, or less: %t", ok)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(warnings) != 2 || !strings.Contains(warnings[0]+warnings[1], "does not exist yet") || !strings.Contains(warnings[0]+warnings[1], "has lost layers") {
		t.Errorf("warnings: %q", warnings)
	}
}

// What the records of all caches take in memory is bounded, and a cache that is more is not used.
func TestImportsMemory(t *testing.T) {
	dir, err := CreateDir(t.TempDir(), "cache")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, tag := range []string{"a", "b"} {
		if _, err := Publish(t.Context(), dir, tag, one(tag), pack.Limit{}); err != nil {
			t.Fatal(err)
		}
	}
	warned := make(chan string, 2)
	im := Begin(t.Context(), []*Import{{Repository: dir, Tag: "a"}}, func(text string) { warned <- text })
	found := func(step string) bool {
		_, ok, err := im.Record(t.Context(), solver.KeyOf([]solver.Input{{Name: "step", Value: step}}))
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if !found("a") || im.room >= maxRecordMemory {
		t.Errorf("the first cache is not used, or takes nothing: %d", im.room)
	}
	im.room = 1
	im.Add([]*Import{{Repository: dir, Tag: "a"}, {Repository: dir, Tag: "b"}})
	if !found("a") || found("b") {
		t.Error("the first cache is not used any more, or the second is")
	}
	if text := <-warned; !strings.Contains(text, "would take more than 512 MiB of memory") || len(warned) > 0 {
		t.Errorf("warning %q, and %d more", text, len(warned))
	}
}
