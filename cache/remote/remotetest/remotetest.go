// Package remotetest has what every remote.Repository must do.
package remotetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/solver"
)

// Traits are what not every Repository can.
type Traits struct {
	// KeepsManifests: it removes none.
	KeepsManifests bool
	// Unlisted: it does not list tags, and is a remote.Swapper for that.
	Unlisted bool
}

// Blob returns a blob of some text.
func Blob(text string) (ocispec.Descriptor, func() (io.ReadCloser, error)) {
	return BlobOf([]byte(text))
}

// BlobOf returns a blob.
func BlobOf(data []byte) (ocispec.Descriptor, func() (io.ReadCloser, error)) {
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	return ocispec.Descriptor{MediaType: "text/plain", Digest: digest.FromBytes(data), Size: int64(len(data))}, open
}

// One returns a pack with one record and no layer.
func One(name string) *pack.Pack {
	p := &pack.Pack{}
	r := pack.Record{Version: solver.KeyVersion, Used: time.Now().Truncate(time.Second)}
	r.Inputs = []solver.Input{{Name: "step", Value: name}}
	p.AddRecord(solver.KeyOf(r.Inputs), r)
	return p
}

// Run tests an empty repository. open returns it, and each time as another process would have it.
func Run(t *testing.T, traits Traits, open func(t *testing.T) remote.Repository) {
	t.Run("blobs", func(t *testing.T) { blobs(t, open(t)) })
	t.Run("tags", func(t *testing.T) { tags(t, traits, open(t)) })
	t.Run("swap", func(t *testing.T) { swap(t, open) })
	t.Run("writers", func(t *testing.T) { Writers(t, 12, open) })
	t.Run("prune", func(t *testing.T) { prune(t, open(t)) })
	t.Run("canceled", func(t *testing.T) { canceled(t, open(t)) })
}

func blobs(t *testing.T, r remote.Repository) {
	ctx := t.Context()
	large := bytes.Repeat([]byte("0123456789abcdef"), 40<<20/16+1) // several parts, of which the last one is short
	for _, text := range [][]byte{[]byte("hello"), {}, large} {
		desc, open := BlobOf(text)
		if _, err := r.Open(ctx, desc); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open of nothing: %v", err)
		}
		for range 2 {
			if err := r.Put(ctx, desc, open); err != nil {
				t.Fatal(err)
			}
		}
		f, err := r.Open(ctx, desc)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(f); err != nil || !bytes.Equal(data, text) {
			t.Errorf("%d of %d bytes, %v", len(data), len(text), err)
		}
		f.Close()
	}
	_, open := Blob("hello")
	wrong, _ := Blob("something else")
	if err := r.Put(ctx, wrong, open); err == nil {
		t.Error("Put of other bytes succeeded")
	}
	if _, err := r.Open(ctx, wrong); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of what was not put: %v", err)
	}
	wrong, _ = BlobOf(append(bytes.Clone(large), 'x'))
	_, open = BlobOf(large)
	if err := r.Put(ctx, wrong, open); err == nil {
		t.Error("Put of too few bytes succeeded")
	}
	if _, err := r.Open(ctx, wrong); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of what was not put: %v", err)
	}
}

func tags(t *testing.T, traits Traits, r remote.Repository) {
	ctx := t.Context()
	if _, err := r.Get(ctx, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get of nothing: %v", err)
	}
	put := func(tag string) []byte {
		t.Helper()
		desc, open := Blob("records of " + tag)
		desc.MediaType = pack.Type
		if err := r.Put(ctx, desc, open); err != nil {
			t.Fatal(err)
		}
		data := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":%q,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
			ocispec.MediaTypeImageManifest, pack.ArtifactType, ocispec.MediaTypeEmptyJSON, ocispec.DescriptorEmptyJSON.Digest, pack.Type, desc.Digest, desc.Size)
		if err := r.Set(ctx, tag, ocispec.MediaTypeImageManifest, data); err != nil {
			t.Fatal(err)
		}
		return data
	}
	config, open := Blob("{}")
	if err := r.Put(ctx, config, open); err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"a.1", "a.2", "a", "b.1", "a.1"} {
		data := put(tag)
		if got, err := r.Get(ctx, tag); err != nil || !bytes.Equal(got, data) {
			t.Errorf("Get(%s) = %q, %v", tag, got, err)
		}
	}
	if traits.Unlisted {
		return
	}
	if tags, err := r.Tags(ctx, "x"); err != nil || len(tags) > 0 {
		t.Errorf("Tags of nothing: %v, %v", tags, err)
	}
	tags, err := r.Tags(ctx, "a.")
	slices.Sort(tags)
	if err != nil || !slices.Equal(tags, []string{"a.1", "a.2"}) {
		t.Errorf("Tags = %v, %v", tags, err)
	}
	data, err := r.Get(ctx, "a.1")
	if err != nil {
		t.Fatal(err)
	}
	err = r.Remove(ctx, "a.1", digest.FromBytes(data))
	_, gone := r.Get(ctx, "a.1")
	if traits.KeepsManifests != (err != nil) || traits.KeepsManifests != (gone == nil) {
		t.Errorf("Remove: %v, and then Get: %v", err, gone)
	}
}

// swap: of two who replace the same manifest one succeeds.
func swap(t *testing.T, open func(t *testing.T) remote.Repository) {
	one, ok := open(t).(remote.Swapper)
	if !ok {
		return
	}
	other := open(t).(remote.Swapper)
	ctx := t.Context()
	text := func(n int) []byte { return fmt.Appendf(nil, `{"schemaVersion":2,"n":%d}`, n) }
	old := digest.Digest("")
	for n := range 3 {
		for _, r := range []remote.Swapper{one, other} { // each has read what it replaces
			if data, err := r.Get(ctx, "swapped"); old == "" && !errors.Is(err, fs.ErrNotExist) || old != "" && digest.FromBytes(data) != old {
				t.Fatalf("Get = %q, %v", data, err)
			}
		}
		if err := one.Swap(ctx, "swapped", ocispec.MediaTypeImageManifest, old, text(2*n)); err != nil {
			t.Fatal(err)
		}
		if err := other.Swap(ctx, "swapped", ocispec.MediaTypeImageManifest, old, text(2*n+1)); !errors.Is(err, remote.ErrConflict) {
			t.Fatalf("the second Swap: %v", err)
		}
		old = digest.FromBytes(text(2 * n))
	}
}

// Writers tests that however many write to one cache at once, it has the records of all of them in the end. Each has a repository of its
// own.
func Writers(t *testing.T, writers int, open func(t *testing.T) remote.Repository) {
	var all sync.WaitGroup
	for i := range writers {
		r := open(t)
		all.Go(func() {
			if _, err := remote.Publish(t.Context(), r, "cache", One(fmt.Sprint(i)), pack.Limit{}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	h, err := remote.Read(t.Context(), open(t), "cache")
	if err != nil {
		t.Fatal(err)
	}
	for i := range writers {
		if !h.Pack.Has(One(fmt.Sprint(i)), time.Hour) {
			t.Errorf("the records of writer %d are lost", i)
		}
	}
}

func prune(t *testing.T, r remote.Repository) {
	ctx := t.Context()
	for _, name := range []string{"one", "two"} {
		if _, err := remote.Publish(ctx, r, "pruned", One(name), pack.Limit{}); err != nil {
			t.Fatal(err)
		}
	}
	unnamed, open := Blob("a blob of a writer that has yet to put its manifest")
	if err := r.Put(ctx, unnamed, open); err != nil {
		t.Fatal(err)
	}
	if before, after, err := remote.Prune(ctx, r, "pruned", pack.Limit{Records: 1}, false); before.Records != 2 || after.Records != 1 || err != nil {
		t.Errorf("Prune to one record: %d before, %d after, %v", before, after, err)
	}
	if before, after, err := remote.Prune(ctx, r, "pruned", pack.Limit{}, true); before.Records != 1 || after.Records != 0 || err != nil {
		t.Errorf("Prune of all: %d before, %d after, %v", before, after, err)
	}
	if h, err := remote.Read(ctx, r, "pruned"); err != nil || len(h.Pack.Records) > 0 {
		t.Errorf("after that: %v", err)
	}
	f, err := r.Open(ctx, unnamed)
	if err != nil {
		t.Fatalf("a new blob is gone: %v", err)
	}
	f.Close()
}

// canceled: a blob whose writer is interrupted before its last byte is read is not there.
func canceled(t *testing.T, r remote.Repository) {
	for _, size := range []int{1 << 20, 40 << 20} {
		data := bytes.Repeat([]byte("canceled"), size/8)
		desc, _ := BlobOf(data)
		ctx, cancel := context.WithCancel(t.Context())
		err := r.Put(ctx, desc, func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(data[:size/2]), interrupted{ctx, cancel})), nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Put: %v", err)
		}
		if _, err := r.Open(t.Context(), desc); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open of %d bytes: %v", size, err)
		}
	}
}

// interrupted is a reader that cancels a context and has nothing more to give. The rest of the data may not follow: a writer
// that has it at hand may be done before it sees that it is canceled.
type interrupted struct {
	ctx    context.Context
	cancel context.CancelFunc
}

func (i interrupted) Read([]byte) (int, error) {
	i.cancel()
	return 0, i.ctx.Err()
}
