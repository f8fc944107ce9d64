package remote

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/gunzip"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/registrytest"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// With the table of members and the manifest of a layer, the bytes of one file are fetched from a registry, and few others.
func TestOneFile(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	reg := registrytest.Start(t)
	client, ref := registry.New(config.Registries{}), reg.Host+"/app:cache"
	store := registrytest.NewStore(t)

	contents := map[string][]byte{}
	manifest := filepath.Join(t.TempDir(), "manifest")
	w, err := layer.NewWriter(manifest)
	if err != nil {
		t.Fatal(err)
	}
	dated := time.Unix(1e9, 0)
	add := func(e layer.Entry, data []byte) {
		e.Size, e.Digest, e.ModTime = int64(len(data)), sha256.Sum256(data), dated
		contents[e.Path] = data
		if err := w.Add(&e); err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.NewChaCha8([32]byte{1})
	if err := w.Add(&layer.Entry{Path: "d", Type: layer.Dir, Mode: 0o755, ModTime: dated, Opaque: true}); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		data := make([]byte, i*9000)
		rng.Read(data[:len(data)/2])
		e := layer.Entry{Path: fmt.Sprintf("d/%02d%s", i, strings.Repeat("x", i*6)), Type: layer.File, Mode: 0o644}
		if i%5 == 0 {
			e.Xattrs = []layer.Xattr{{Name: "user.note", Value: strings.Repeat("n", i*20)}}
		}
		add(e, data)
	}
	if _, err := w.Close(dated); err != nil {
		t.Fatal(err)
	}
	m, err := layer.OpenManifest(manifest)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()

	blobs := blob.Store{CAS: store}
	compression, err := blob.ParseCompression("gzip", "")
	if err != nil {
		t.Fatal(err)
	}
	making, err := blobs.Begin(t.Context(), "layer", compression, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer making.Close()
	err = layer.WriteLayer(making, func(yield func(*layer.Entry, layer.Body) bool) {
		for e := range m.All() {
			if !yield(e, func(w io.Writer) error { _, err := w.Write(contents[e.Path]); return err }) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	made, err := making.Commit()
	if err != nil {
		t.Fatal(err)
	}
	list, err := blobs.Members(made)
	if err != nil {
		t.Fatal(err)
	}
	err = client.PutBlob(t.Context(), ref, made.Desc, false, func() (io.ReadCloser, error) { return store.Open(made.Desc) })
	if err != nil {
		t.Fatal(err)
	}

	members, err := pack.DecodeMembers(pack.EncodeMembers(list), made.Desc.Size)
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	err = layer.TarOffsets(m.All(), func(e *layer.Entry, offset int64) bool {
		files++
		span, ok := members.Span(offset, e.Size)
		if !ok {
			t.Fatalf("/%s is not in the blob", e.Path)
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s/v2/app/blobs/%s", reg.Host, made.Desc.Digest), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", span.From, span.To-1))
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		z, err := gunzip.NewReader(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		got := make([]byte, e.Size)
		if _, err := io.CopyN(io.Discard, z, span.Skip); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(z, got); err != nil || !bytes.Equal(got, contents[e.Path]) {
			t.Errorf("/%s has other bytes, %v", e.Path, err)
		}
		if resp.StatusCode != http.StatusPartialContent || span.To-span.From > made.Desc.Size*2/3 {
			t.Errorf("/%s took %d of %d bytes, %s", e.Path, span.To-span.From, made.Desc.Size, resp.Status)
		}
		return true
	})
	if err != nil || files != 39 || len(list) < 3 {
		t.Errorf("%d files in %d members, %v", files, len(list), err)
	}
	if slices.ContainsFunc(list, func(m gunzip.Member) bool { return m.Data > gunzip.MaxSized }) {
		t.Errorf("%v", list)
	}
}
