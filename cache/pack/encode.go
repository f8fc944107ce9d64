package pack

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/solver"
)

// The limits of an encoded pack, in bytes. A record is at most as large as one of the local cache.
const (
	MaxSize = 32 << 20 // as it is sent
	maxText = 64 << 20 // decompressed
	maxLine = 4 << 20
	// MaxWindow bounds the memory that a zstd stream may require.
	MaxWindow = 32 << 20
)

// The limits of what a pack takes in memory: of its lines, each with what it is decoded to, in bytes as counted by cost.
const (
	maxLines  = 1 << 20
	maxMemory = 256 << 20
)

// MaxRecords is how many records a pack may have that is published.
const MaxRecords = 20000

// version is that of the format. A pack of a later one is not read.
const version = 1

// ErrVersion is returned for a pack that a later version of kiln wrote.
var ErrVersion = errors.New("a later version of kiln wrote it")

// line is one line of the text: one of its fields is set. The first line is the header.
type line struct {
	Header   *header       `json:"kiln cache,omitempty"`
	Record   *recordLine   `json:"record,omitempty"`
	Known    *recordLine   `json:"known,omitempty"`
	Layer    *layerLine    `json:"layer,omitempty"`
	Shortcut *shortcutLine `json:"shortcut,omitempty"`
	Mount    *mountLine    `json:"mount,omitempty"`
	Document *documentLine `json:"document,omitempty"`
	Base     *baseLine     `json:"base,omitempty"`
}

type header struct {
	Version int `json:"version"`
}

type recordLine struct {
	Key       string        `json:"key"`
	Version   string        `json:"version"`
	Inputs    [][2]string   `json:"inputs"`
	Outputs   []outputLine  `json:"outputs,omitempty"`
	Materials [][2]string   `json:"materials,omitempty"`
	Name      string        `json:"name"`
	Started   time.Time     `json:"started"`
	Took      time.Duration `json:"took"`
	Used      int64         `json:"used"`
	signatures
}

// signatures are part of each line that is a statement.
type signatures struct {
	Signatures []signatureLine `json:"signatures,omitempty"`
}

type signatureLine struct {
	Key   string `json:"key"`
	Bytes []byte `json:"sig"`
}

type outputLine struct {
	Output  int            `json:"output"`
	Layer   string         `json:"layer"`
	Content solver.Content `json:"content"`
}

type layerLine struct {
	ID       layer.ID            `json:"id"`
	Content  solver.Content      `json:"content"`
	Created  time.Time           `json:"created"`
	Opaque   bool                `json:"opaque,omitempty"`
	Manifest *descriptor         `json:"manifest,omitempty"`
	Blobs    map[string]blobLine `json:"blobs,omitempty"`
	signatures
}

type descriptor struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

type blobLine struct {
	MediaType string `json:"mediaType"`
	descriptor
	DiffID  digest.Digest `json:"diffID"`
	Members *descriptor   `json:"members,omitempty"`
	signatures
}

type shortcutLine struct {
	From string `json:"from"`
	Key  string `json:"key"`
	signatures
}

func encodeSignatures(s Signatures) signatures {
	var out signatures
	for _, sig := range s {
		out.Signatures = append(out.Signatures, signatureLine{sig.Key, []byte(sig.Bytes)})
	}
	return out
}

// decode returns those that can be signatures.
func (l signatures) decode() Signatures {
	var s Signatures
	for _, sig := range l.Signatures {
		if sig := (Signature{sig.Key, string(sig.Bytes)}); sig.valid() {
			s = append(s, sig)
		}
	}
	return Signatures(nil).with(s)
}

// budget is what has been taken of the limits of a pack's text. It is the same for writing and for reading, so that nothing is published
// that nobody could read.
type budget struct{ text, memory, lines int }

// take takes a line, without its end.
func (b *budget) take(line []byte) error {
	b.lines++
	b.text += len(line) + 1
	b.memory += cost(line)
	if len(line) >= maxLine {
		return fmt.Errorf("a line of the cache's records has more than %d bytes", maxLine)
	}
	if b.text >= maxText || b.memory > maxMemory || b.lines > maxLines {
		return errors.New("the cache's records are too many: max-age=, max-size= and kiln cache prune make room")
	}
	return nil
}

// Encode returns the pack as it is sent, which is the same for equal packs. The error says that it is larger than Decode reads.
func (p *Pack) Encode() ([]byte, error) {
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(p.encodeText(z), z.Close()); err != nil {
		return nil, fmt.Errorf("encode the cache: %w", err)
	}
	if out.Len() > MaxSize {
		return nil, fmt.Errorf("encode the cache: its records have %d bytes, and the limit is %d", out.Len(), MaxSize)
	}
	return out.Bytes(), nil
}

func (p *Pack) encodeText(to io.Writer) (err error) {
	w := bufio.NewWriter(to)
	var text bytes.Buffer
	var taken budget
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	put := func(l line) {
		if err != nil {
			return
		}
		text.Reset()
		if err = e.Encode(l); err == nil {
			err = taken.take(bytes.TrimSuffix(text.Bytes(), []byte("\n")))
		}
		if err == nil {
			_, err = w.Write(text.Bytes())
		}
	}
	put(line{Header: &header{version}})
	for _, records := range []map[solver.Key]Record{p.Records, p.Foreign} {
		for _, key := range slices.SortedFunc(maps.Keys(records), compareKeys) {
			if !records[key].Known {
				put(line{Record: encodeRecord(key, records[key])})
			}
		}
	}
	for _, records := range []map[solver.Key]Record{p.Records, p.Foreign} {
		for _, key := range slices.SortedFunc(maps.Keys(records), compareKeys) {
			if records[key].Known {
				put(line{Known: encodeRecord(key, records[key])})
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(p.Layers)) {
		put(line{Layer: encodeLayer(p.Layers[id])})
	}
	for _, from := range slices.SortedFunc(maps.Keys(p.Shortcuts), compareKeys) {
		t := p.Shortcuts[from]
		put(line{Shortcut: &shortcutLine{from.String(), t.Key.String(), encodeSignatures(t.Signatures)}})
	}
	for _, key := range slices.Sorted(maps.Keys(p.Mounts)) {
		put(line{Mount: encodeMount(p.Mounts[key])})
	}
	for _, name := range slices.Sorted(maps.Keys(p.Documents)) {
		d := p.Documents[name]
		put(line{Document: &documentLine{d.Text, d.Used.Unix()}})
	}
	for _, id := range slices.Sorted(maps.Keys(p.Bases)) {
		put(line{Base: encodeBase(p.Bases[id])})
	}
	return errors.Join(err, w.Flush())
}

func compareKeys(a, b solver.Key) int { return slices.Compare(a[:], b[:]) }

func encodeRecord(key solver.Key, r Record) *recordLine {
	l := &recordLine{
		Key: key.String(), Version: r.Version, Name: r.Name, Started: r.Started.UTC(), Took: r.Took, Used: r.Used.Unix(), Inputs: [][2]string{},
		Materials: encodeMaterials(r.Materials), signatures: encodeSignatures(r.Signatures),
	}
	for _, in := range r.Inputs {
		l.Inputs = append(l.Inputs, [2]string{in.Name, in.Value})
	}
	for _, m := range r.Outputs {
		l.Outputs = append(l.Outputs, outputLine{m.Output, m.ID, m.Content})
	}
	return l
}

func encodeMaterials(all []solver.Material) [][2]string {
	var out [][2]string
	for _, m := range all {
		out = append(out, [2]string{m.URI, m.Digest})
	}
	return out
}

func decodeMaterials(all [][2]string) []solver.Material {
	var out []solver.Material
	for _, m := range all {
		out = append(out, solver.Material{URI: m[0], Digest: m[1]})
	}
	return out
}

func encodeLayer(l Layer) *layerLine {
	out := &layerLine{ID: l.ID, Content: l.Content, Created: l.Created.UTC(), Opaque: l.Opaque, signatures: encodeSignatures(l.Signatures)}
	if l.Manifest.Digest != "" {
		out.Manifest = &descriptor{l.Manifest.Digest, l.Manifest.Size}
	}
	for encoding, b := range l.Blobs {
		if out.Blobs == nil {
			out.Blobs = map[string]blobLine{}
		}
		line := blobLine{
			MediaType: b.Desc.MediaType, descriptor: descriptor{b.Desc.Digest, b.Desc.Size}, DiffID: b.DiffID,
			signatures: encodeSignatures(b.Signatures),
		}
		if b.Members.Digest != "" {
			line.Members = &descriptor{b.Members.Digest, b.Members.Size}
		}
		out.Blobs[encoding] = line
	}
	return out
}

// Decode reads what Encode wrote. Nothing in it is believed: a record whose inputs do not give its key, and a layer without a valid ID, are
// left out. The error wraps ErrVersion for a pack of a later version; every other error says that it is damaged.
func Decode(ctx context.Context, r io.Reader) (*Pack, error) {
	z, err := zstd.NewReader(ctxio.Reader(ctx, r), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(MaxWindow))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return decodeText(z)
}

func decodeText(r io.Reader) (*Pack, error) {
	text := &io.LimitedReader{R: r, N: maxText}
	lines := bufio.NewScanner(text)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	p := &Pack{}
	var taken budget
	for n := 1; lines.Scan(); n++ {
		var l line
		if err := taken.take(lines.Bytes()); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("line %d of the cache's records: %w", n, err)
		}
		if n == 1 {
			switch {
			case l.Header == nil || l.Header.Version < 1:
				return nil, errors.New("it is no cache of kiln")
			case l.Header.Version > version:
				return nil, ErrVersion
			}
			continue
		}
		if err := p.decode(l); err != nil {
			return nil, fmt.Errorf("line %d of the cache's records: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the cache's records: %w", err)
	}
	if text.N == 0 {
		return nil, fmt.Errorf("the cache's records have more than %d bytes", maxText)
	}
	p.memory = taken.memory
	return p, nil
}

// cost returns what a line takes at most when it is decoded: its bytes, and a constant for each thing in it.
func cost(line []byte) int {
	const each = 64 // two strings, or an entry of a map
	return 512 + len(line) + each*(bytes.Count(line, []byte{','})+bytes.Count(line, []byte{'['})+bytes.Count(line, []byte{'{'}))
}

func (p *Pack) decode(l line) error {
	switch {
	case l.Record != nil:
		key, r, err := decodeRecord(l.Record)
		if err != nil {
			return err
		}
		if r.Version != solver.KeyVersion || solver.KeyOf(r.Inputs) == key {
			p.AddRecord(key, r)
		}
	case l.Known != nil:
		key, r, err := decodeRecord(l.Known)
		if err != nil {
			return err
		}
		r = r.OnlyKnown()
		r.Signatures = l.Known.decode()
		p.AddRecord(key, r)
	case l.Layer != nil:
		if decoded, ok := decodeLayer(l.Layer); ok {
			p.AddLayer(decoded)
		}
	case l.Shortcut != nil:
		return p.decodeShortcut(l.Shortcut)
	case l.Mount != nil:
		if m, ok := decodeMount(l.Mount); ok {
			p.AddMount(m)
		}
	case l.Document != nil:
		if d, ok := decodeDocument(l.Document); ok {
			p.AddDocument(d)
		}
	case l.Base != nil:
		if b, ok := decodeBase(l.Base); ok {
			p.AddBase(b)
		}
	}
	return nil // a later version may add lines that this one can do without
}

func (p *Pack) decodeShortcut(l *shortcutLine) error {
	from, err := solver.ParseKey(l.From)
	if err != nil {
		return err
	}
	to, err := solver.ParseKey(l.Key)
	if err != nil {
		return err
	}
	p.AddShortcut(from, Shortcut{to, l.decode()})
	return nil
}

func decodeRecord(l *recordLine) (solver.Key, Record, error) {
	key, err := solver.ParseKey(l.Key)
	if err != nil {
		return key, Record{}, err
	}
	r := Record{Version: l.Version, Used: time.Unix(l.Used, 0), Signatures: l.decode()}
	r.Name, r.Started, r.Took, r.Materials = l.Name, l.Started, l.Took, decodeMaterials(l.Materials)
	if !written(r.Used) || !written(r.Started) {
		return key, r, fmt.Errorf("record %s has a time that no kiln writes", key)
	}
	for _, in := range l.Inputs {
		r.Inputs = append(r.Inputs, solver.Input{Name: in[0], Value: in[1]})
	}
	for _, m := range l.Outputs {
		if m.Output < 0 || !layer.ID(m.Layer).Valid() {
			return key, r, fmt.Errorf("output %d is layer %q", m.Output, m.Layer)
		}
		r.Outputs = append(r.Outputs, solver.Made{Output: m.Output, Layer: solver.Layer{ID: m.Layer, Content: m.Content}})
	}
	return key, r, nil
}

// written reports whether a time can be one that kiln has written, and can be written again wherever it is.
func written(t time.Time) bool {
	year := t.UTC().Year()
	return year >= 1 && year <= 9998
}

// plainEncodings are the encodings that the media types of layers' tars say.
var plainEncodings = map[string]string{
	ocispec.MediaTypeImageLayer: "uncompressed", ocispec.MediaTypeImageLayerGzip: "gzip", ocispec.MediaTypeImageLayerZstd: "zstd",
}

// isEncoding reports whether s can be the name of an encoding, which becomes part of a name of a file.
func isEncoding(s string) bool {
	if len(s) == 0 || len(s) > maxEncodingName || s[0] == '.' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r != '.' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') })
}

// maxEncodingName bounds the name of an encoding, in bytes.
const maxEncodingName = 64

// maxEncodings bounds how many blobs one layer has.
const maxEncodings = 64

func decodeLayer(l *layerLine) (Layer, bool) {
	out := Layer{ID: l.ID, Content: l.Content, Created: l.Created, Opaque: l.Opaque, Signatures: l.decode()}
	if !l.ID.Valid() || len(l.Blobs) > maxEncodings || !written(l.Created) {
		return out, false
	}
	if l.Manifest != nil {
		if !l.Manifest.valid() {
			return out, false
		}
		out.Manifest = ocispec.Descriptor{MediaType: ManifestType, Digest: l.Manifest.Digest, Size: l.Manifest.Size}
	}
	for encoding, b := range l.Blobs {
		if !b.valid() || b.DiffID.Validate() != nil || !isEncoding(encoding) || plainEncodings[b.MediaType] == "" {
			return out, false
		}
		if out.Blobs == nil {
			out.Blobs = map[string]Blob{}
		}
		have := Blob{
			Desc:   ocispec.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size},
			DiffID: b.DiffID, Signatures: b.decode(),
		}
		if b.Members != nil {
			if !b.Members.valid() || b.Members.Size > MaxMembersSize {
				return out, false
			}
			have.Members = ocispec.Descriptor{MediaType: MembersType, Digest: b.Members.Digest, Size: b.Members.Size}
		}
		out.Blobs[encoding] = have
	}
	return out, true
}

func (d *descriptor) valid() bool {
	return d.Digest.Validate() == nil && d.Digest.Algorithm() == digest.SHA256 && d.Size >= 0
}
