package pack

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/solver"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func inlineOf(steps int) Inline {
	in := Inline{Encoding: "gzip", Shortcuts: map[solver.Key]solver.Key{}}
	for i := range steps {
		key := solver.KeyOf([]solver.Input{{Name: "step", Value: fmt.Sprint(i)}})
		in.Steps = append(in.Steps, InlineStep{Key: key, Outputs: []InlineOutput{{Layer: i, Content: solver.Content{1, byte(i)}, Opaque: i%2 == 0}},
			Materials: []solver.Material{{URI: "https://example.com/<a>", Digest: "sha256:0"}}})
		in.Shortcuts[solver.KeyOf([]solver.Input{{Name: "from", Value: fmt.Sprint(i)}})] = key
	}
	return in
}

// image returns a config with an inline cache, and the blobs of so many layers.
func image(inline []byte, layers int) (config []byte, blobs []ocispec.Descriptor) {
	var diffIDs, history []string
	for i := range layers {
		d := digest.FromString(fmt.Sprint("layer ", i))
		diffIDs = append(diffIDs, `"`+string(d)+`"`)
		history = append(history, fmt.Sprintf(`{"created":"2026-01-02T03:04:%02dZ","created_by":"RUN %d"},{"empty_layer":true}`, i%60, i))
		blobs = append(blobs, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: 7})
	}
	return fmt.Appendf(nil, `{"rootfs":{"type":"layers","diff_ids":[%s]},"history":[%s],"kiln.cache.v1":%s}`,
		strings.Join(diffIDs, ","), strings.Join(history, ","), inline), blobs
}

func TestInline(t *testing.T) {
	in := inlineOf(5)
	data, left, err := in.Encode()
	if err != nil || left != 0 {
		t.Fatal(left, err)
	}
	for range 5 {
		if again, _, _ := inlineOf(5).Encode(); !bytes.Equal(again, data) {
			t.Fatal("it encodes to something else each time")
		}
	}
	config, blobs := image(data, 5)
	p, err := DecodeInline(config, blobs)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Records) != 5 || len(p.Shortcuts) != 5 || len(p.Layers) != 5 {
		t.Errorf("%d records, %d shortcuts, %d layers", len(p.Records), len(p.Shortcuts), len(p.Layers))
	}
	for i, s := range in.Steps {
		r := p.Records[s.Key]
		if len(r.Outputs) != 1 || r.Name != fmt.Sprintf("RUN %d", i) || len(r.Materials) != 1 || r.Materials[0] != s.Materials[0] {
			t.Errorf("record %d: %+v", i, r)
			continue
		}
		for id, l := range p.Layers {
			if string(id) != r.Outputs[0].ID {
				continue
			}
			if l.Content != s.Outputs[0].Content || l.Opaque != s.Outputs[0].Opaque || l.Created.Second() != i || l.Blobs["gzip"].Desc.Size != 7 || !l.Image {
				t.Errorf("layer %d: %+v", i, l)
			}
		}
	}
	if _, err := DecodeInline(config, blobs[:4]); err == nil {
		t.Error("an image with other layers than its config says is accepted")
	}
}

// What is too large is left out from the top, the same each time.
func TestInlineOfManySteps(t *testing.T) {
	in := inlineOf(10000)
	data, left, err := in.Encode()
	if err != nil || left == 0 || left == len(in.Steps) || len(data) > maxInline {
		t.Fatal(len(data), left, err)
	}
	config, blobs := image(data, len(in.Steps))
	p, err := DecodeInline(config, blobs)
	if err != nil || len(p.Records) != len(in.Steps)-left {
		t.Fatal(err, len(p.Records))
	}
	for i, s := range in.Steps {
		if _, ok := p.Records[s.Key]; ok != (i < len(in.Steps)-left) {
			t.Fatalf("step %d of %d is in it: %v; %d are left out", i, len(in.Steps), ok, left)
		}
	}
}

// The encoding of a blob is what the cache says, unless its media type says otherwise.
func TestInlineEncoding(t *testing.T) {
	for _, c := range []struct{ said, mediaType, want string }{
		{"gzip", ocispec.MediaTypeImageLayerGzip, "gzip"},
		{"uncompressed", ocispec.MediaTypeImageLayerGzip, "gzip"}, // it was pushed later
		{"gzip-9", ocispec.MediaTypeImageLayerGzip, "gzip-9"},
		{"gzip-9", ocispec.MediaTypeImageLayerZstd, "zstd"},
		{"zstd.epoch5", ocispec.MediaTypeImageLayerZstd, "zstd.epoch5"},
		{"gzip-9", "application/vnd.docker.image.rootfs.diff.tar.gzip", "gzip-9"},
		{"../x", ocispec.MediaTypeImageLayer, "uncompressed"},
	} {
		in := inlineOf(1)
		in.Encoding = c.said
		data, _, err := in.Encode()
		if err != nil {
			t.Fatal(err)
		}
		config, blobs := image(data, 1)
		blobs[0].MediaType = c.mediaType
		p, err := DecodeInline(config, blobs)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range p.Layers {
			if _, ok := l.Blobs[c.want]; !ok {
				t.Errorf("%s of %s: %v, want %s", c.said, c.mediaType, l.Blobs, c.want)
			}
		}
	}
}

func FuzzInline(f *testing.F) {
	data, _, err := inlineOf(2).Encode()
	if err != nil {
		f.Fatal(err)
	}
	config, blobs := image(data, 2)
	f.Add(config)
	f.Fuzz(func(t *testing.T, config []byte) {
		p, err := DecodeInline(config, blobs)
		if err != nil {
			return
		}
		for _, r := range p.Records {
			for _, o := range r.Outputs {
				if o.Output < 0 || len(o.ID) != 64 {
					t.Errorf("output %+v", o)
				}
			}
		}
		for id, l := range p.Layers {
			if !id.Valid() || !l.Image || len(l.Blobs) != 1 {
				t.Errorf("layer %+v", l)
			}
		}
	})
}
