package pack

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/solver"
)

// InlineField is the field of an image's config that has an inline cache.
const InlineField = "kiln.cache.v1"

// maxInline bounds an inline cache in bytes: registries and engines take a config of some MiB, of which the history has its part.
const maxInline = 1 << 20

// Inline is a cache in the config of an image: the steps that made the image's layers. It has neither times nor texts, so the same image
// has the same one, whether its steps ran or were cached.
type Inline struct {
	// Encoding is that of the layers' blobs, where their media types do not say it.
	Encoding string
	Steps    []InlineStep
	// Known are steps of which the image does not have all layers; the numbers of those that it lacks are -1.
	Known []InlineStep
	// Shortcuts lead to the keys of Steps and of Known.
	Shortcuts map[solver.Key]solver.Key
}

// InlineStep is the record of a step.
type InlineStep struct {
	Key       solver.Key
	Outputs   []InlineOutput
	Materials []solver.Material
}

// InlineOutput is a layer of the image as the output of a step.
type InlineOutput struct {
	// Output is the number of the step's output, and Layer that of the image's layer, from 0 at the lowest.
	Output  int            `json:"output,omitempty"`
	Layer   int            `json:"layer"`
	Content solver.Content `json:"content"`
	Opaque  bool           `json:"opaque,omitempty"`
}

// inlineText is the JSON of an Inline.
type inlineText struct {
	Version   int            `json:"version"`
	Keys      string         `json:"keys"`
	Encoding  string         `json:"encoding,omitempty"`
	Records   []inlineRecord `json:"records"`
	Known     []inlineKnown  `json:"known,omitempty"`
	Shortcuts []shortcutLine `json:"shortcuts,omitempty"` // without signatures
}

type inlineRecord struct {
	Key       string         `json:"key"`
	Outputs   []InlineOutput `json:"outputs,omitempty"`
	Materials [][2]string    `json:"materials,omitempty"`
}

// inlineKnown is a step of which the image does not have all layers.
type inlineKnown struct {
	Key       string        `json:"key"`
	Outputs   []knownOutput `json:"outputs,omitempty"`
	Materials [][2]string   `json:"materials,omitempty"`
}

type knownOutput struct {
	Output  int            `json:"output,omitempty"`
	Layer   *int           `json:"layer,omitempty"`
	Content solver.Content `json:"content"`
	Opaque  bool           `json:"opaque,omitempty"`
}

// Encode returns the JSON, which is the same for the same cache. Steps that are only known, and then those whose layers are the uppermost,
// are left out if it would be too large, and left is their number.
func (in Inline) Encode() (data []byte, left int, err error) {
	t := inlineText{Version: version, Keys: solver.KeyVersion, Records: []inlineRecord{}}
	if !plainEncoding(in.Encoding) {
		t.Encoding = in.Encoding
	}
	top := func(s InlineStep) int {
		n := -1
		for _, o := range s.Outputs {
			n = max(n, o.Layer)
		}
		return n
	}
	steps := slices.SortedFunc(slices.Values(in.Steps), func(a, b InlineStep) int {
		return cmp.Or(cmp.Compare(top(a), top(b)), compareKeys(a.Key, b.Key))
	})
	leading := map[solver.Key][]solver.Key{}
	for from, to := range in.Shortcuts {
		leading[to] = append(leading[to], from)
	}
	known := slices.SortedFunc(slices.Values(in.Known), func(a, b InlineStep) int { return compareKeys(a.Key, b.Key) })
	size := 0
	// fits adds the shortcuts to a step, if there is room for them and for what describes it.
	fits := func(key solver.Key, described any) (bool, error) {
		var shortcuts []shortcutLine
		for _, from := range slices.SortedFunc(slices.Values(leading[key]), compareKeys) {
			shortcuts = append(shortcuts, shortcutLine{From: from.String(), Key: key.String()})
		}
		text, err := json.Marshal([]any{described, shortcuts})
		if size += len(text); err != nil || size > maxInline {
			return false, err
		}
		t.Shortcuts = append(t.Shortcuts, shortcuts...)
		return true, nil
	}
	for _, s := range steps {
		r := inlineRecord{Key: s.Key.String(), Outputs: s.Outputs, Materials: encodeMaterials(s.Materials)}
		ok, err := fits(s.Key, r)
		if err != nil {
			return nil, 0, err
		}
		if !ok {
			break
		}
		t.Records = append(t.Records, r)
	}
	for _, s := range known {
		k := inlineKnown{Key: s.Key.String(), Materials: encodeMaterials(s.Materials)}
		for _, o := range s.Outputs {
			out := knownOutput{Output: o.Output, Content: o.Content, Opaque: o.Opaque}
			if o.Layer >= 0 {
				out.Layer = &o.Layer
			}
			k.Outputs = append(k.Outputs, out)
		}
		ok, err := fits(s.Key, k)
		if err != nil {
			return nil, 0, err
		}
		if !ok {
			break
		}
		t.Known = append(t.Known, k)
	}
	data, err = json.Marshal(t)
	return data, len(steps) + len(known) - len(t.Records) - len(t.Known), err
}

// plainEncoding reports whether the media type of a blob says its encoding.
func plainEncoding(s string) bool {
	return slices.Contains(slices.Collect(maps.Values(plainEncodings)), s)
}

// dockerTypes are the OCI media types of Docker's.
var dockerTypes = map[string]string{
	"application/vnd.docker.image.rootfs.diff.tar":      ocispec.MediaTypeImageLayer,
	"application/vnd.docker.image.rootfs.diff.tar.gzip": ocispec.MediaTypeImageLayerGzip,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": ocispec.MediaTypeImageLayerZstd,
}

// HasField reports whether the config of an image has a field.
func HasField(config []byte, name string) bool {
	var c map[string]json.RawMessage
	return json.Unmarshal(config, &c) == nil && c[name] != nil
}

// DecodeInline returns the inline cache of an image that has one, as a pack: its layers are the image's, with their diff IDs as IDs and
// without manifests, and its records have no inputs. The error wraps ErrVersion for one of another version of kiln; every other error says
// that it is damaged.
func DecodeInline(config []byte, blobs []ocispec.Descriptor) (*Pack, error) {
	var c struct {
		RootFS  ocispec.RootFS    `json:"rootfs"`
		History []ocispec.History `json:"history"`
		Cache   inlineText        `json:"kiln.cache.v1"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("read the image's config: %w", err)
	}
	if c.Cache.Version > version || c.Cache.Keys != solver.KeyVersion {
		return nil, ErrVersion
	}
	if len(blobs) != len(c.RootFS.DiffIDs) {
		return nil, fmt.Errorf("the image has %d layers, and its config %d", len(blobs), len(c.RootFS.DiffIDs))
	}
	made := make([]ocispec.History, len(blobs))
	n := 0
	for _, h := range c.History {
		if !h.EmptyLayer && n < len(made) {
			made[n] = h
			n++
		}
	}
	d := inlineDecoder{pack: &Pack{}, diffIDs: c.RootFS.DiffIDs, blobs: blobs, made: made, encoding: c.Cache.Encoding}
	for _, r := range c.Cache.Records {
		record := Record{Version: solver.KeyVersion}
		for _, o := range r.Outputs {
			if err := d.output(&record, o); err != nil {
				return nil, fmt.Errorf("record %s: %w", r.Key, err)
			}
		}
		if err := d.add(r.Key, record, r.Materials); err != nil {
			return nil, err
		}
	}
	for _, k := range c.Cache.Known {
		record := Record{Version: solver.KeyVersion, Known: true}
		for _, o := range k.Outputs {
			if o.Layer != nil {
				if err := d.output(&record, InlineOutput{o.Output, *o.Layer, o.Content, o.Opaque}); err != nil {
					return nil, fmt.Errorf("record %s: %w", k.Key, err)
				}
				continue
			}
			if o.Output < 0 {
				return nil, fmt.Errorf("record %s has output %d", k.Key, o.Output)
			}
			// Nobody has a layer with this ID: the image does not say what that of the step is called.
			made := solver.Made{Output: o.Output, Layer: solver.Layer{ID: o.Content.String(), Content: o.Content}}
			record.Outputs = append(record.Outputs, made)
		}
		record.Name = ""
		if err := d.add(k.Key, record, k.Materials); err != nil {
			return nil, err
		}
	}
	p := d.pack
	for _, s := range c.Cache.Shortcuts {
		s.Signatures = nil // an image is signed as a whole
		if err := p.decodeShortcut(&s); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// inlineDecoder reads the records of an inline cache.
type inlineDecoder struct {
	pack     *Pack
	diffIDs  []digest.Digest
	blobs    []ocispec.Descriptor
	made     []ocispec.History // of the layers
	encoding string
}

// output adds a layer of the image to the outputs of a record.
func (d *inlineDecoder) output(r *Record, o InlineOutput) error {
	if o.Output < 0 || o.Layer < 0 || o.Layer >= len(d.blobs) {
		return fmt.Errorf("it has output %d as layer %d of %d", o.Output, o.Layer, len(d.blobs))
	}
	l, ok := inlineLayer(d.diffIDs[o.Layer], d.blobs[o.Layer], d.encoding)
	if !ok || o.Content == (solver.Content{}) && d.diffIDs[o.Layer] != emptyTar {
		return fmt.Errorf("layer %d cannot be that of a step", o.Layer)
	}
	l.Content, l.Opaque = o.Content, o.Opaque
	if at := d.made[o.Layer].Created; at != nil {
		l.Created, r.Started = *at, *at
	}
	r.Name = d.made[o.Layer].CreatedBy
	if _, has := d.pack.Layers[l.ID]; !has {
		d.pack.AddLayer(l)
	}
	r.Outputs = append(r.Outputs, solver.Made{Output: o.Output, Layer: solver.Layer{ID: string(l.ID), Content: o.Content}})
	return nil
}

// add adds a record.
func (d *inlineDecoder) add(key string, r Record, materials [][2]string) error {
	parsed, err := solver.ParseKey(key)
	if err != nil {
		return err
	}
	r.Materials = decodeMaterials(materials)
	d.pack.AddRecord(parsed, r)
	return nil
}

// emptyTar is the digest of a tar without entries: the layer of a step that changed nothing, which is never fetched.
const emptyTar = digest.Digest("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")

// inlineLayer returns a layer of an image whose blobs are in an encoding, or in that which their media types say for "".
func inlineLayer(diffID digest.Digest, blob ocispec.Descriptor, encoding string) (l Layer, ok bool) {
	mediaType := blob.MediaType
	if oci, ok := dockerTypes[mediaType]; ok {
		mediaType = oci
	}
	plain, ok := plainEncodings[mediaType]
	desc := descriptor{blob.Digest, blob.Size}
	if !ok || !desc.valid() || diffID.Validate() != nil || diffID.Algorithm() != digest.SHA256 {
		return l, false
	}
	// Whoever pushed the image may have compressed it.
	if kind, _, _ := strings.Cut(encoding, "."); encoding == "" || !strings.HasPrefix(kind, plain) || !isEncoding(encoding) {
		encoding = plain
	}
	return Layer{
		ID: layer.ID(diffID.Encoded()), Created: time.Unix(0, 0), Image: true,
		Blobs: map[string]Blob{encoding: {Desc: ocispec.Descriptor{MediaType: mediaType, Digest: blob.Digest, Size: blob.Size}, DiffID: diffID}},
	}, true
}
