package zstdframes

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
)

// text is n bytes that compress, always the same.
func text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%d words %x\n", r.IntN(1000), r.Uint32())
	}
	return b.Bytes()[:n]
}

func encoder(tb testing.TB, o ...zstd.EOption) *zstd.Encoder {
	tb.Helper()
	e, err := zstd.NewWriter(nil, append([]zstd.EOption{zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true)}, o...)...)
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

// streamed returns data as one frame that does not say its size.
func streamed(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	e := encoder(tb)
	e.Reset(&out)
	if _, err := e.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(e.Flush(), e.Close()); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// skippable is a frame that is skipped.
var skippable = append([]byte{0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0}, "hello"...)

// TestReader: whatever a stream is made of, the bytes are those that one decoder makes of it, and the sum is of all of them.
func TestReader(t *testing.T) {
	e, plain := encoder(t), encoder(t, zstd.WithEncoderCRC(false))
	noise := make([]byte, 300<<10)
	r := rand.New(rand.NewPCG(7, 7))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	frames := map[string][]byte{
		"empty": e.EncodeAll(nil, nil), "one byte": e.EncodeAll([]byte("x"), nil), "zeros": e.EncodeAll(make([]byte, 3<<20), nil),
		"noise": plain.EncodeAll(noise, nil), "text": e.EncodeAll(text(1, 2<<20), nil), "large": e.EncodeAll(text(2, MaxData+1), nil),
		"streamed": streamed(t, text(3, 1<<20)), "skippable": skippable,
	}
	for name, list := range map[string][]string{
		"one":             {"text"},
		"small":           {"empty", "text", "one byte", "zeros", "noise", "text", "empty"},
		"many":            {"one byte", "text", "one byte", "text", "one byte", "text", "one byte", "text", "one byte", "text", "one byte", "zeros"},
		"skippable":       {"text", "skippable", "noise", "skippable"},
		"large":           {"text", "large", "text"},
		"streamed":        {"streamed"},
		"streamed later":  {"noise", "streamed", "skippable", "text"},
		"skippable first": {"skippable", "text"},
	} {
		var stream []byte
		for _, f := range list {
			stream = append(stream, frames[f]...)
		}
		want, err := decoded(stream)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		got, err := read(bytes.NewReader(stream), sum)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
		if sha := sha256.Sum256(want); !bytes.Equal(sum.Sum(nil), sha[:]) {
			t.Errorf("%s: the sum is of other bytes", name)
		}
		if got, err := read(iotest.OneByteReader(bytes.NewReader(stream[:min(len(stream), 200<<10)])), nil); !bytes.HasPrefix(want, got) || err == nil && len(got) < len(want) {
			t.Errorf("%s, cut off: %d bytes, %v", name, len(got), err)
		}
	}
}

// decoded decompresses a stream by one decoder.
func decoded(stream []byte) ([]byte, error) {
	d, err := zstd.NewReader(bytes.NewReader(stream), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return io.ReadAll(d)
}

func read(r io.Reader, sum io.Writer) ([]byte, error) {
	z, err := NewReader(r, sum, 64<<20)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return io.ReadAll(z)
}

// TestDamaged: what is damaged, cut off or followed by something else is an error, after nothing but bytes of the stream, and so is a failure
// of the source.
func TestDamaged(t *testing.T) {
	e := encoder(t)
	data := text(4, 1<<20)
	stream := append(e.EncodeAll(data[:512<<10], nil), e.EncodeAll(data[512<<10:], nil)...)
	for i := 0; i < len(stream); i += 9973 {
		if got, err := read(bytes.NewReader(stream[:i]), nil); i > 0 && err == nil && len(got) == len(data) || !bytes.HasPrefix(data, got) {
			t.Errorf("cut off at %d: %d bytes, %v", i, len(got), err)
		}
		bad := bytes.Clone(stream)
		bad[i] ^= 4
		if got, err := read(bytes.NewReader(bad), nil); err == nil && !bytes.Equal(got, data) {
			t.Errorf("damaged at %d: no error, and %d bytes", i, len(got))
		}
	}
	if got, err := read(bytes.NewReader(stream[:len(stream)-2]), nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut off at the end: %d bytes, %v", len(got), err)
	}
	if _, err := read(bytes.NewReader(append(bytes.Clone(stream), "garbage"...)), nil); !errors.Is(err, zstd.ErrMagicMismatch) {
		t.Errorf("followed by something else: %v", err)
	}
	broken := errors.New("broken")
	for _, n := range []int{0, 3, 1000, len(stream) - 1, len(stream)} {
		if _, err := read(io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(broken)), nil); !errors.Is(err, broken) {
			t.Errorf("the source fails after %d bytes: %v", n, err)
		}
	}
}

// TestClose: a reader can be closed at any time.
func TestClose(t *testing.T) {
	e := encoder(t)
	var stream []byte
	for i := range 20 {
		stream = append(stream, e.EncodeAll(text(uint64(i), 300<<10), nil)...)
	}
	stream = append(stream, streamed(t, text(9, 1<<20))...)
	for _, n := range []int64{0, 1, 1 << 20, 6<<20 + 1} {
		z, err := NewReader(bytes.NewReader(stream), nil, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, z, n); err != nil {
			t.Error(err)
		}
		if err := z.Close(); err != nil {
			t.Error(err)
		}
		if _, err := z.Read(make([]byte, 1)); err == nil {
			t.Error("a closed reader can be read")
		}
	}
}

// FuzzReader compares with one decoder: the same bytes, or an error of both.
func FuzzReader(f *testing.F) {
	e := encoder(f)
	f.Add(append(e.EncodeAll([]byte("hello, hello, hello"), nil), e.EncodeAll(text(1, 4000), nil)...))
	f.Add(append(append(e.EncodeAll(nil, nil), skippable...), streamed(f, text(2, 5000))...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, stream []byte) {
		want, wantErr := decoded(stream)
		got, err := read(bytes.NewReader(stream), nil)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, and one decoder: %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, and one decoder makes %d", len(got), len(want))
		}
	})
}
