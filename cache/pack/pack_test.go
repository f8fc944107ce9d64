package pack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/solver"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// add adds the record of a step called name that made a layer of so many bytes, used so many hours after epoch.
func add(p *Pack, name string, size int64, used int) (solver.Key, layer.ID) {
	inputs := []solver.Input{{Name: "op", Value: "exec"}, {Name: "arg", Value: name}}
	key := solver.KeyOf(inputs)
	id := layer.ID(digest.FromString("layer " + name).Encoded())
	content, _ := solver.ParseContent(digest.FromString("content " + name).Encoded())
	r := Record{Version: solver.KeyVersion, Used: epoch.Add(time.Duration(used) * time.Hour)}
	r.Inputs, r.Name, r.Started, r.Took = inputs, "RUN "+name, epoch, time.Second
	r.Outputs = []solver.Made{{Layer: solver.Layer{ID: string(id), Content: content}}}
	r.Materials = []solver.Material{{URI: "https://example.com/" + name, Digest: "sha256:0"}}
	p.AddRecord(key, r)
	desc := func(kind string, size int64) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: kind, Digest: digest.FromString(kind + name), Size: size}
	}
	p.AddLayer(Layer{
		ID: id, Content: content, Created: epoch, Manifest: desc(ManifestType, 0),
		Blobs: map[string]Blob{"gzip": {Desc: desc(ocispec.MediaTypeImageLayerGzip, size), DiffID: digest.FromString("tar " + name), Members: desc(MembersType, 7)}},
	})
	p.AddShortcut(solver.KeyOf([]solver.Input{{Name: "shortcut", Value: name}}), Shortcut{Key: key})
	base := desc(ManifestType, 5)
	base.Digest = digest.FromString("base " + name)
	p.AddBase(Base{ID: layer.ID(base.Digest.Encoded()), Manifest: base, Used: r.Used})
	return key, id
}

func encode(t *testing.T, p *Pack) []byte {
	t.Helper()
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func decode(t *testing.T, data []byte) *Pack {
	t.Helper()
	p, err := Decode(t.Context(), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEncodeDecode(t *testing.T) {
	p := &Pack{}
	for i := range 20 {
		add(p, fmt.Sprint(i), 10, i)
	}
	foreign := Record{Version: "kiln-0", Used: epoch}
	foreign.Started = epoch
	p.AddRecord(solver.Key{1}, foreign)
	const text = "{\"a\": \"<b>\\u2028\u2028\x00\"}\n"
	p.AddDocument(Document{text, epoch})
	data := encode(t, p)
	got := decode(t, data)
	if !bytes.Equal(encode(t, got), data) {
		t.Error("a pack that was decoded encodes to something else")
	}
	if len(got.Records) != 20 || len(got.Layers) != 20 || len(got.Shortcuts) != 20 || len(got.Foreign) != 1 {
		t.Errorf("%d records, %d layers, %d shortcuts, %d foreign", len(got.Records), len(got.Layers), len(got.Shortcuts), len(got.Foreign))
	}
	key, id := add(&Pack{}, "7", 10, 7)
	if got := got.Records[key]; !reflect.DeepEqual(got.Record, p.Records[key].Record) || !got.Used.Equal(p.Records[key].Used) {
		t.Errorf("record %+v, want %+v", got, p.Records[key])
	}
	if !reflect.DeepEqual(got.Layers[id], p.Layers[id]) {
		t.Errorf("layer %+v, want %+v", got.Layers[id], p.Layers[id])
	}
	for id, b := range p.Bases {
		if got := got.Bases[id]; got.ID != id || !reflect.DeepEqual(got.Manifest, b.Manifest) || !got.Used.Equal(b.Used) {
			t.Errorf("base %+v, want %+v", got, b)
		}
	}
	if d := got.Documents[digest.FromString(text)]; d.Text != text || !d.Used.Equal(epoch) {
		t.Errorf("document %+v", d)
	}
}

// What a text cannot say, and what is large, is no document; of the others those stay that were used last.
func TestDocuments(t *testing.T) {
	p := &Pack{}
	p.AddDocument(Document{"\xff", epoch})
	p.AddDocument(Document{strings.Repeat(" ", MaxDocument+1), epoch})
	if len(p.Documents) > 0 {
		t.Error("it has what it cannot have")
	}
	now := epoch.Add(1000 * time.Hour)
	for i := range 3 * maxDocuments {
		p.AddDocument(Document{fmt.Sprint("small", i), epoch.Add(time.Duration(i) * time.Hour)})
	}
	last, future := fmt.Sprint("small", 3*maxDocuments-1), "future"
	p.AddDocument(Document{future, now.Add(2 * maxSkew)})
	alone := &Pack{}
	alone.Add(p)
	if alone.Trim(Limit{}, now); len(alone.Documents) > 0 {
		t.Error("documents stay without a record")
	}
	add(p, "a", 1, 0)
	young := &Pack{}
	young.Add(p)
	if p.Trim(Limit{}, now); len(p.Documents) != maxDocuments || p.Documents[digest.FromString(last)].Text != last ||
		p.Documents[digest.FromString(future)].Text != "" {
		t.Errorf("%d documents stay, or the wrong ones", len(p.Documents))
	}
	add(young, "a", 1, 1000)
	age := now.Sub(epoch.Add(time.Duration(3*maxDocuments-10) * time.Hour))
	if young.Trim(Limit{Age: age}, now); len(young.Documents) != 10 {
		t.Errorf("%d documents are young", len(young.Documents))
	}
	large := &Pack{}
	add(large, "a", 1, 0)
	for i := range maxDocuments {
		large.AddDocument(Document{fmt.Sprintf("%*d", MaxDocument, i), epoch})
	}
	if large.Trim(Limit{}, now); len(large.Documents) != maxDocText/MaxDocument {
		t.Errorf("%d large documents stay", len(large.Documents))
	}
	if p.Has(large, time.Hour) || !large.Has(large, time.Nanosecond) {
		t.Error("Has does not look at documents")
	}
}

// Packs that are added up in any order, and any number of times, give the same.
func TestAddInAnyOrder(t *testing.T) {
	var all []*Pack
	for i := range 12 {
		p := &Pack{}
		for n := range 5 {
			add(p, fmt.Sprint((i+n)%8), 10, i*n%7)
		}
		// The same step was done twice, at other times, and made another layer.
		key, id := add(p, "twice", 10, i%3)
		r := p.Records[key]
		r.Started = epoch.Add(time.Duration(i%4) * time.Minute)
		p.AddRecord(key, r)
		l := p.Layers[id]
		l.Created = r.Started
		l.Blobs = map[string]Blob{fmt.Sprintf("zstd-%d", i%5): l.Blobs["gzip"]}
		p.AddLayer(l)
		p.AddDocument(Document{fmt.Sprint("document", i%5), epoch.Add(time.Duration(i) * time.Hour)})
		all = append(all, p)
	}
	var want []byte
	for range 50 {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		sum := &Pack{}
		for _, p := range append(all, all[:3]...) {
			sum.Add(decode(t, encode(t, p)))
		}
		got := encode(t, sum)
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Fatal("the sum depends on the order")
		}
		for _, p := range all {
			if !sum.Has(p, time.Nanosecond) {
				t.Fatal("the sum lacks something")
			}
		}
	}
}

func TestTrim(t *testing.T) {
	fresh := func() *Pack {
		p := &Pack{}
		for i := range 10 {
			add(p, fmt.Sprint(i), 100, i)
		}
		return p
	}
	now := epoch.Add(10 * time.Hour)
	for _, tc := range []struct {
		name  string
		limit Limit
		want  int
	}{
		{"no limit", Limit{}, 10}, {"size", Limit{Size: 350}, 3}, {"age", Limit{Age: 4 * time.Hour}, 4}, {"blobs", Limit{Blobs: 8}, 2},
		{"nothing fits", Limit{Size: 1}, 0},
	} {
		p := fresh()
		p.Trim(tc.limit, now)
		if len(p.Records) != tc.want || len(p.Layers) != tc.want || len(p.Shortcuts) != tc.want {
			t.Errorf("%s: %d records, %d layers, %d shortcuts, want %d of each", tc.name, len(p.Records), len(p.Layers), len(p.Shortcuts), tc.want)
		}
		if key, _ := add(&Pack{}, "9", 0, 0); tc.want > 0 && len(p.Records[key].Inputs) == 0 {
			t.Errorf("%s: the record that was used last is gone", tc.name)
		}
	}
}

// What is in layers of images stays as long as there is room beside the records, that which was used last first.
func TestTrimBases(t *testing.T) {
	now := epoch.Add(10 * time.Hour)
	for _, tc := range []struct {
		name  string
		limit Limit
		want  int
	}{{"no limit", Limit{}, 11}, {"size", Limit{Size: 120}, 2}, {"blobs", Limit{Blobs: 6}, 3}, {"age", Limit{Age: 4 * time.Hour}, 5}} {
		p := &Pack{}
		add(p, "record", 100, 10)
		for i := range 10 {
			p.AddBase(Base{
				ID: layer.ID(digest.FromString(fmt.Sprint("layer", i)).Encoded()), Used: epoch.Add(time.Duration(i) * time.Hour),
				Manifest: ocispec.Descriptor{MediaType: ManifestType, Digest: digest.FromString(fmt.Sprint(i)), Size: 7},
			})
		}
		whole := &Pack{}
		whole.Add(p)
		if p.Trim(tc.limit, now); len(p.Bases) != tc.want || len(p.Records) != 1 {
			t.Errorf("%s: %d bases and %d records, want %d and 1", tc.name, len(p.Bases), len(p.Records), tc.want)
		}
		if !whole.Has(p, time.Nanosecond) || p.Has(whole, time.Hour) != (tc.want == 11) {
			t.Errorf("%s: Has does not look at bases", tc.name)
		}
	}
	alone := &Pack{}
	add(alone, "x", 1, 1)
	alone.Records = nil
	if alone.Trim(Limit{}, now); len(alone.Bases) > 0 {
		t.Error("bases stay without a record")
	}
}

// compress returns text as it is in a pack.
func compress(text string) []byte {
	z, _ := zstd.NewWriter(nil)
	return z.EncodeAll([]byte(text), nil)
}

func TestDecodeOfWhatIsNotToBeTrusted(t *testing.T) {
	const head = `{"kiln cache":{"version":1}}` + "\n"
	zeros := strings.Repeat("0", 64)
	for _, tc := range []struct{ name, text, want string }{
		{"empty", "", ""},
		{"something else", "hello\n", "line 1"},
		{"no header", `{"record":{}}` + "\n", "no cache of kiln"},
		{"a later version", `{"kiln cache":{"version":2}}` + "\n", ErrVersion.Error()},
		{"a key that is none", head + `{"record":{"key":"x","version":"kiln-4"}}` + "\n", "line 2"},
		{"a layer's name that is a path", head + `{"record":{"key":"` + zeros + `","outputs":[{"layer":"../x"}]}}` + "\n", "../x"},
	} {
		_, err := Decode(t.Context(), bytes.NewReader(compress(tc.text)))
		if tc.want == "" && err == nil {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	p := decode(t, compress(head+`{"record":{"key":"`+zeros+`","version":"`+solver.KeyVersion+`","inputs":[["op","exec"]]}}`+"\n"+
		`{"layer":{"id":"`+zeros+`","content":"`+zeros+`","blobs":{"../../x":{"mediaType":"m","digest":"sha256:`+zeros+`","size":1,"diffID":"sha256:`+zeros+`"}}}}`+"\n"+
		`{"layer":{"id":"`+zeros+`","content":"`+zeros+`","manifest":{"digest":"md5:x","size":1}}}`+"\n"+
		`{"something later":{}}`+"\n"))
	if len(p.Records)+len(p.Layers) > 0 {
		t.Errorf("a record whose inputs have another key, and layers that cannot be, are not left out: %+v", p)
	}
	if _, err := Decode(t.Context(), strings.NewReader("not compressed")); err == nil || errors.Is(err, ErrVersion) {
		t.Error(err)
	}
}

// A few bytes do not take any amount of memory or time.
func TestDecodeOfBombs(t *testing.T) {
	const head = `{"kiln cache":{"version":1}}` + "\n"
	zeros := strings.Repeat("0", 64)
	for name, line := range map[string]string{
		"empty lines":      "{}\n",
		"empty inputs":     `{"record":{"key":"` + zeros + `","version":"x","inputs":[` + strings.Repeat("[],", 100000) + `[]]}}` + "\n",
		"empty materials":  `{"record":{"key":"` + zeros + `","version":"x","materials":[` + strings.Repeat("[],", 100000) + `[]]}}` + "\n",
		"a very long line": strings.Repeat(" ", maxLine+1) + "\n",
	} {
		text := io.MultiReader(strings.NewReader(head), &repeated{line: line, left: maxText})
		if _, err := decodeText(text); err == nil {
			t.Errorf("%s: it is accepted", name)
		}
	}
}

// repeated is so many bytes of the same line.
type repeated struct {
	line string
	at   int
	left int
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, io.EOF
	}
	n := copy(p, r.line[r.at:])
	r.at = (r.at + n) % len(r.line)
	r.left -= n
	return n, nil
}

func FuzzDecode(f *testing.F) {
	p := &Pack{}
	add(p, "x", 10, 1)
	var text bytes.Buffer
	if err := p.encodeText(&text); err != nil {
		f.Fatal(err)
	}
	f.Add(text.Bytes())
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := decodeText(bytes.NewReader(text))
		if err != nil {
			return
		}
		for key, r := range p.Records {
			if solver.KeyOf(r.Inputs) != key {
				t.Errorf("record %s has the inputs of %s", key, solver.KeyOf(r.Inputs))
			}
		}
		for id := range p.Layers {
			if !id.Valid() {
				t.Errorf("layer %q", id)
			}
		}
		var once, twice bytes.Buffer
		if err := p.encodeText(&once); err != nil {
			t.Fatal(err)
		}
		again, err := decodeText(bytes.NewReader(once.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if err := again.encodeText(&twice); err != nil || !bytes.Equal(once.Bytes(), twice.Bytes()) {
			t.Errorf("it encodes to something else: %v", err)
		}
	})
}

// A record whose use lies in the future goes first, and one with a time that cannot be written is no record.
func TestTimes(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	p := &Pack{}
	for i, used := range []time.Time{now, now.Add(-time.Hour), time.Unix(1<<40, 0)} {
		inputs := []solver.Input{{Name: "n", Value: string(rune('0' + i))}}
		r := Record{Version: solver.KeyVersion, Used: used}
		r.Inputs, r.Name = inputs, string(rune('0'+i))
		p.AddRecord(solver.KeyOf(inputs), r)
	}
	p.Trim(Limit{Records: 2}, now)
	for _, r := range p.Records {
		if r.Name == "2" {
			t.Error("what claims to be used in the future stays")
		}
	}
	for _, bad := range []time.Time{time.Unix(1<<62, 0), time.Date(9999, 12, 31, 23, 0, 0, 0, time.UTC), {}} {
		if written(bad) != bad.IsZero() {
			t.Errorf("%v", bad)
		}
	}
}

// What cannot be read is not written: then a cache stays as it is.
func TestEncodeLimits(t *testing.T) {
	for name, c := range map[string]struct{ records, size int }{"a long record": {1, 6 << 20}, "many": {20000, 3500}} {
		p := &Pack{}
		for i := range c.records {
			inputs := []solver.Input{{Name: "n", Value: strings.Repeat("x", c.size) + fmt.Sprint(i)}}
			r := Record{Version: solver.KeyVersion}
			r.Inputs = inputs
			p.AddRecord(solver.KeyOf(inputs), r)
		}
		if text, err := p.Encode(); err == nil {
			_, err := Decode(t.Context(), bytes.NewReader(text))
			t.Errorf("%s: it is written, and reading it gives %v", name, err)
		}
	}
}
