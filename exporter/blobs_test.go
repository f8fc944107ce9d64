package exporter

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// TestEarlierLayer: a layer's blob is the same with and without that of an earlier one, whole or damaged.
func TestEarlierLayer(t *testing.T) {
	build := func(change func(m *made, earlier Layer)) string {
		m := newMade(t)
		file := func(text []byte) Layer {
			m.image.Layers = nil
			m.layer(layer.Entry{Path: "file", Type: layer.File, Mode: 0o644, ModTime: when, Link: string(text)})
			return m.image.Layers[0]
		}
		data := words(4 << 20)
		earlier := file(data)
		if change != nil {
			m.assemble(gz)
			change(m, earlier)
		}
		copy(data[3<<20:], "changed")
		if l := file(data); change != nil {
			m.layers.SetEarlier(l.ID, earlier.ID)
		}
		return m.assemble(gz).Desc.Digest.String()
	}
	want := build(nil)
	for name, change := range map[string]func(m *made, earlier Layer){
		"whole": func(*made, Layer) {},
		"by way of the tar": func(m *made, earlier Layer) {
			if err := os.Remove(filepath.Join(m.Store.Root(), "layers", string(earlier.ID), blob.NoteName(gz.Layers))); err != nil {
				t.Fatal(err)
			}
			m.assemble(Form{Layers: blob.Encoding{Compression: blob.Uncompressed}})
			m.assemble(gz)
		},
		"damaged": func(m *made, earlier Layer) {
			have, err := m.layers.Blob(t.Context(), earlier.ID, gz.Layers)
			if err != nil || len(have.Note()) < 500 {
				t.Fatalf("nothing is known of the layer's blocks: %s, %v", have.Note(), err)
			}
			path, err := m.Store.Path(have.Desc.Digest)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[1000] ^= 1
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		},
	} {
		if got := build(change); got != want {
			t.Errorf("%s: with an earlier layer the image is %s, without %s", name, got, want)
		}
	}
}

// words are n bytes that compress, always the same.
func words(n int) []byte {
	random := rand.New(rand.NewPCG(6, 0))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%x word ", random.Uint64()%10000)
	}
	return b.Bytes()[:n]
}
