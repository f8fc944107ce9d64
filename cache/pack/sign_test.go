package pack

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/solver"
)

// newKey returns a key that nobody else has.
func newKey(t testing.TB, elliptical bool) *signing.PrivateKey {
	t.Helper()
	_, made, err := ed25519.GenerateKey(rand.Reader)
	var key any = made
	if elliptical {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	private, err := signing.ReadPrivateKey(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

// sign signs everything in a pack.
func sign(t testing.TB, p *Pack, k *signing.PrivateKey) {
	t.Helper()
	for key, r := range p.Records {
		if err := r.Sign(k, key); err != nil {
			t.Fatal(err)
		}
		p.Records[key] = r
	}
	for id, l := range p.Layers {
		if err := l.Sign(k); err != nil {
			t.Fatal(err)
		}
		p.Layers[id] = l
	}
	for from, s := range p.Shortcuts {
		if err := s.Sign(k, from); err != nil {
			t.Fatal(err)
		}
		p.Shortcuts[from] = s
	}
	for id, b := range p.Bases {
		if err := b.Sign(k); err != nil {
			t.Fatal(err)
		}
		p.Bases[id] = b
	}
}

// statements returns everything in a pack that counts by these keys.
func statements(p *Pack, k Keys) map[string]bool {
	all := map[string]bool{}
	for key, r := range p.Records {
		if k.Record(key, r) {
			all[string(r.statement(key))] = true
		}
	}
	for id, l := range p.Layers {
		if l, ok := k.Layer(l); ok {
			all[string(l.statement())] = true
			for encoding, b := range l.Blobs {
				all[string(b.statement(id, encoding))] = true
			}
		}
	}
	for from, s := range p.Shortcuts {
		if k.Shortcut(from, s) {
			all[string(s.statement(from))] = true
		}
	}
	for _, b := range p.Bases {
		if k.Base(b) {
			all[string(b.statement())] = true
		}
	}
	return all
}

func text(t testing.TB, p *Pack) string {
	t.Helper()
	var b bytes.Buffer
	if err := p.encodeText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What is signed counts after it was sent, and by no other key.
func TestSigned(t *testing.T) {
	for _, elliptical := range []bool{false, true} {
		p := &Pack{}
		add(p, "a", 10, 1)
		key, _ := add(p, "b", 20, 2)
		r := p.Records[key]
		r.Name, r.Started = "RUN \xff\u2028<&>", r.Started.In(time.FixedZone("", 3600)).Add(time.Nanosecond)
		p.Records[key] = r
		k := newKey(t, elliptical)
		sign(t, p, k)
		got := decode(t, encode(t, p))
		if n := len(statements(got, Keys{newKey(t, true).Public(), k.Public()})); n != 10 {
			t.Errorf("%d of 10 statements count", n)
		}
		if n := len(statements(got, Keys{newKey(t, elliptical).Public()})); n != 0 {
			t.Errorf("%d statements count by another key", n)
		}
		if n := len(statements(got, nil)); n != 0 {
			t.Errorf("%d statements count by no key", n)
		}
	}
}

// changes calls f with copies of a decoded JSON value in which one thing is another.
func changes(v any, path string, f func(changed any, path string)) {
	switch v := v.(type) {
	case map[string]any:
		for key, field := range v {
			changes(field, path+"/"+key, func(changed any, path string) {
				c := map[string]any{key: changed}
				for k, x := range v {
					if k != key {
						c[k] = x
					}
				}
				f(c, path)
			})
			c := map[string]any{}
			for k, x := range v {
				if k != key {
					c[k] = x
				}
			}
			f(c, path+"/"+key+" removed")
		}
	case []any:
		for i, item := range v {
			at := fmt.Sprintf("%s/%d", path, i)
			changes(item, at, func(changed any, path string) {
				c := slices.Clone(v)
				c[i] = changed
				f(c, path)
			})
			f(slices.Delete(slices.Clone(v), i, i+1), at+" removed")
			f(append(slices.Clone(v), item), at+" twice")
		}
	case string:
		if v != "" {
			last := byte('1')
			if v[len(v)-1] == last {
				last = '2'
			}
			f(v[:len(v)-1]+string(last), path)
			first := byte('1')
			if v[0] == first {
				first = '2'
			}
			f(string(first)+v[1:], path)
		}
		f(v+"x", path+" longer")
	case float64:
		f(v+1, path)
	case bool:
		f(!v, path)
	}
}

// Whatever is changed in the text of a signed cache, nothing counts in it that was not signed.
func TestTampering(t *testing.T) {
	p := &Pack{}
	key, id := add(p, "a", 10, 1)
	_, other := add(p, "b", 20, 2)
	l := p.Layers[id]
	l.Opaque = true
	p.Layers[id] = l
	k := newKey(t, false)
	sign(t, p, k)
	keys := Keys{k.Public()}
	signed := statements(p, keys)
	check := func(what, text string) int {
		t.Helper()
		got, err := decodeText(strings.NewReader(text))
		if err != nil {
			return 0
		}
		counts := statements(got, keys)
		for s := range counts {
			if !signed[s] {
				t.Errorf("%s: it counts what nobody has signed: %q", what, s)
			}
		}
		return len(counts)
	}
	whole := text(t, p)
	if n := check("unchanged", whole); n != len(signed) {
		t.Fatalf("%d of %d statements count", n, len(signed))
	}
	lines := strings.SplitAfter(whole, "\n")
	tried := 0
	for i, line := range lines[1 : len(lines)-1] {
		var v any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		changes(v, "", func(changed any, path string) {
			data, err := json.Marshal(changed)
			if err != nil {
				t.Fatal(err)
			}
			all := slices.Clone(lines)
			all[i+1] = string(data) + "\n"
			n := check(path, strings.Join(all, ""))
			// Nothing depends on the time of use, on a third string of two, and on a zero that is not there.
			harmless := strings.HasPrefix(path, "/record/used") || strings.HasPrefix(path, "/base/used") ||
				strings.HasSuffix(path, " twice") ||
				strings.HasSuffix(path, "/output removed") || strings.HasSuffix(path, "/manifest/size removed")
			if n == len(signed) && !harmless {
				t.Errorf("line %d, %s: everything still counts", i+2, path)
			}
			tried++
		})
	}
	if tried < 100 {
		t.Errorf("only %d changes were tried", tried)
	}
	for n := range len(whole) {
		if n%7 == 0 {
			check("truncated", whole[:n])
		}
	}

	// A record with the layer of another, a layer with the blob of another, and a shortcut to another key: each with all signatures.
	swapped := decode(t, encode(t, p))
	r := swapped.Records[key]
	r.Outputs[0].Layer = solver.Layer{ID: string(other), Content: swapped.Layers[other].Content}
	swapped.Records[key] = r
	l, o := swapped.Layers[id], swapped.Layers[other]
	l.Blobs, o.Blobs = o.Blobs, l.Blobs
	swapped.Layers[id], swapped.Layers[other] = l, o
	for from, s := range swapped.Shortcuts {
		if s.Key == key {
			s.Key = solver.Key{1}
			swapped.Shortcuts[from] = s
		}
	}
	if n := check("swapped", text(t, swapped)); n != 6 { // the other record and shortcut, both layers without blobs, and what is in bases
		t.Errorf("%d statements count of those that were swapped", n)
	}
	// A signature of one kind of statement is none of another.
	if (Keys{k.Public()}).Shortcut(key, Shortcut{key, r.Signatures}) {
		t.Error("the signature of a record is taken for that of a shortcut")
	}
}

// What is signed stays whoever adds whatever to a cache, in any order, whenever it is used, and when it is trimmed.
func TestSignaturesStay(t *testing.T) {
	a, b := newKey(t, false), newKey(t, true)
	var all []*Pack
	for i := range 8 {
		p := &Pack{}
		add(p, "same", 10, i)
		key, id := add(p, "again", 10, i)
		r, l := p.Records[key], p.Layers[id]
		r.Started = epoch.Add(time.Duration(i) * time.Minute) // those without a signature are the later ones
		l.Created = r.Started
		for encoding, blob := range l.Blobs {
			blob.Desc.Digest = blob.Desc.Digest[:len(blob.Desc.Digest)-1] + "f"
			if i < 4 {
				blob.Desc.Digest = blob.Desc.Digest[:len(blob.Desc.Digest)-1] + "0"
			}
			l.Blobs[encoding] = blob
		}
		p.Records[key], p.Layers[id] = r, l
		switch i {
		case 2:
			sign(t, p, a)
		case 3:
			sign(t, p, a)
			sign(t, p, b)
		}
		all = append(all, p)
	}
	var want []byte
	for range 50 {
		mathrand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		sum := &Pack{}
		for _, p := range append(all, all[:3]...) {
			sum.Add(decode(t, encode(t, p)))
		}
		sum.Trim(Limit{Records: 10}, epoch)
		got := encode(t, sum)
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Fatal("the sum depends on the order")
		}
		for name, k := range map[string]*signing.PrivateKey{"a": a, "b": b} {
			if n := len(statements(sum, Keys{k.Public()})); n != 10 {
				t.Fatalf("%d of 10 statements count by key %s", n, name)
			}
		}
		if key, _ := add(&Pack{}, "same", 0, 0); !sum.Records[key].Used.Equal(epoch.Add(7 * time.Hour)) {
			t.Fatal("the time of use is not the last one")
		}
		for _, p := range all {
			if !sum.Has(p, time.Nanosecond) {
				t.Fatal("the sum lacks something")
			}
		}
	}
	// A cache without a signature lacks it.
	for _, what := range []func(with *Pack){
		func(with *Pack) { with.Layers, with.Shortcuts, with.Bases = nil, nil, nil },
		func(with *Pack) { with.Records, with.Shortcuts, with.Bases = nil, nil, nil },
		func(with *Pack) { with.Layers, with.Records, with.Bases = nil, nil, nil },
		func(with *Pack) { with.Layers, with.Records, with.Shortcuts = nil, nil, nil },
	} {
		without, with := &Pack{}, &Pack{}
		add(without, "same", 10, 1)
		add(with, "same", 10, 1)
		sign(t, with, a)
		what(with)
		if without.Has(with, time.Hour) {
			t.Errorf("a cache has what is not signed in it: %+v", with)
		}
	}
}

// However many signatures are said to be of a statement, it keeps some, and the same whatever the order.
func TestManySignatures(t *testing.T) {
	var all Signatures
	for i := range 40 {
		all = append(all, Signature{strings.Repeat(fmt.Sprintf("%02x", i), 32), "x"})
	}
	want := Signatures(nil).with(all)
	for range 20 {
		mathrand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		var got Signatures
		for _, s := range all {
			got = got.with(Signatures{s})
		}
		if len(got) != maxSignatures || !slices.Equal(got, want) {
			t.Fatalf("%d signatures, or others", len(got))
		}
	}
}

// FuzzSigned changes the text of a signed cache: nothing counts in it that was not signed.
func FuzzSigned(f *testing.F) {
	p := &Pack{}
	add(p, "x", 10, 1)
	add(p, "y", 10, 1)
	k := newKey(f, false)
	sign(f, p, k)
	keys := Keys{k.Public()}
	signed := statements(p, keys)
	whole := text(f, p)
	f.Add(0, 0, []byte(nil))
	f.Add(strings.Index(whole, `"outputs"`)+30, 64, []byte(strings.Repeat("0", 64)))
	f.Add(strings.Index(whole, `"started"`)+12, 4, []byte("2027"))
	f.Add(strings.Index(whole, `"opaque"`), 0, []byte(`"opaque":true,`))
	f.Fuzz(func(t *testing.T, at, n int, replace []byte) {
		if at < 0 || n < 0 || at > len(whole) || n > len(whole)-at {
			return
		}
		got, err := decodeText(strings.NewReader(whole[:at] + string(replace) + whole[at+n:]))
		if err != nil {
			return
		}
		for s := range statements(got, keys) {
			if !signed[s] {
				t.Errorf("it counts what nobody has signed: %q", s)
			}
		}
		for id, l := range got.Layers {
			if l.ID != id {
				t.Errorf("layer %s is called %s", id, l.ID)
			}
		}
	})
}
