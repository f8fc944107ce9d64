package gunzip

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// text is bytes in which matches of all lengths and distances are, and stretches that do not compress.
func text(n int) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for len(b) < n {
		switch random.IntN(5) {
		case 0:
			for range random.IntN(3000) {
				b = append(b, byte(random.Uint32()))
			}
		case 1:
			b = append(b, bytes.Repeat([]byte{byte(random.Uint32())}, random.IntN(600))...)
		case 2:
			b = append(b, bytes.Repeat([]byte("abcdefghijk")[:1+random.IntN(11)], random.IntN(100))...)
		default:
			if back := random.IntN(min(len(b), window) + 1); back > 0 {
				b = append(b, b[len(b)-back:][:random.IntN(min(back, 400)+1)]...)
			}
		}
	}
	return b[:n]
}

func compress(t testing.TB, level int, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func uncompress(r io.Reader) ([]byte, error) {
	z, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

var levels = []int{flate.HuffmanOnly, flate.NoCompression, flate.BestSpeed, flate.DefaultCompression, flate.BestCompression}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 2, 257, 65535, 65536, block - 1, block, block + 1, 3*block + 12345} {
		want := text(n)
		for _, level := range levels {
			data := compress(t, level, want)
			got, err := uncompress(bytes.NewReader(data))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes at level %d: %d bytes, %v", n, level, len(got), err)
			}
		}
	}
}

func TestSmallReads(t *testing.T) {
	want := text(100000)
	data := compress(t, flate.DefaultCompression, want)
	for name, r := range map[string]io.Reader{
		"bytes":          iotest.OneByteReader(bytes.NewReader(data)),
		"halves":         iotest.HalfReader(bytes.NewReader(data)),
		"data with EOF":  iotest.DataErrReader(bytes.NewReader(data)),
		"one after zero": iotest.OneByteReader(iotest.DataErrReader(bytes.NewReader(data))),
	} {
		if got, err := uncompress(r); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	z, err := NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(z, want); err != nil {
		t.Error(err)
	}
}

func TestMembers(t *testing.T) {
	var all bytes.Buffer
	var want []byte
	for i, n := range []int{0, 10, 2 * block, 0, 7} {
		z := gzip.NewWriter(&all)
		z.Header = gzip.Header{Name: strings.Repeat("n", i*100), Comment: "c", Extra: make([]byte, i*1000), ModTime: time.Unix(1, 0)}
		part := text(n)
		want = append(want, part...)
		z.Write(part)
		z.Close()
	}
	got, err := uncompress(&all)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
}

// Every way to cut a stream short, and bits that are other ones, must be seen.
func TestDamaged(t *testing.T) {
	want := text(400)
	for _, level := range levels {
		data := compress(t, level, want)
		for i := range data {
			if _, err := uncompress(bytes.NewReader(data[:i])); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("level %d, cut after %d bytes of %d: %v", level, i, len(data), err)
			}
			if i < 10 {
				continue
			}
			bad := bytes.Clone(data)
			bad[i] ^= 1 << (i % 8)
			if got, err := uncompress(bytes.NewReader(bad)); err == nil && !bytes.Equal(got, want) {
				t.Fatalf("level %d, bit of byte %d: no error", level, i)
			}
		}
		if _, err := uncompress(bytes.NewReader(append(bytes.Clone(data), "garbage after it"...))); err == nil {
			t.Error("garbage after the member was not seen")
		}
	}
	broken := errors.New("broken")
	data := compress(t, flate.BestSpeed, want)
	if _, err := uncompress(io.MultiReader(bytes.NewReader(data[:len(data)/2]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("the source's error became %v", err)
	}
}

// A match may not reach into the member before.
func TestMatchBeforeMember(t *testing.T) {
	first := compress(t, flate.BestSpeed, text(1000))
	var deflated bytes.Buffer
	z, err := flate.NewWriterDict(&deflated, flate.BestCompression, text(1000))
	if err != nil {
		t.Fatal(err)
	}
	z.Write(text(1000))
	z.Close()
	second := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, deflated.Bytes()...)
	var format FormatError
	if _, err := uncompress(bytes.NewReader(append(first, append(second, make([]byte, 8)...)...))); !errors.As(err, &format) {
		t.Errorf("the error is %v", err)
	}
}

// FuzzReader holds the reader against the standard library's, for deflated bytes behind a plain header.
func FuzzReader(f *testing.F) {
	for _, level := range levels {
		f.Add(compress(f, level, text(2000))[10:])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, data...)
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		want, wantErr := io.ReadAll(io.LimitReader(z, 4*block))
		mine, err := NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		got, gotErr := io.ReadAll(io.LimitReader(mine, 4*block))
		if (gotErr == nil) != (wantErr == nil) {
			t.Errorf("%v, and the standard library says %v", gotErr, wantErr)
		}
		if wantErr == nil && !bytes.Equal(got, want) {
			t.Error("other bytes than the standard library's")
		}
		// Until the checksum of a member is wrong, both have the same.
		if errors.Is(wantErr, gzip.ErrChecksum) && (!bytes.Equal(got, want) || !strings.Contains(gotErr.Error(), "checksum")) {
			t.Errorf("%d bytes and %v, and the standard library has %d", len(got), gotErr, len(want))
		}
	})
}
