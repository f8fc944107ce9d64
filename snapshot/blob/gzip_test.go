package blob

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// words are n bytes that compress, always the same.
func words(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%d words %x\n", r.IntN(1000), r.Uint32())
	}
	return b.Bytes()[:n]
}

func zip(t *testing.T, data []byte, old *pieces, chunk int) ([]byte, *gzipWriter) {
	t.Helper()
	var out bytes.Buffer
	z := newGzipWriter(&out, gzipLevel, old)
	for rest := data; len(rest) > 0; rest = rest[min(chunk, len(rest)):] {
		if _, err := z.Write(rest[:min(chunk, len(rest))]); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), z
}

// TestGzip: whatever the size and however it is written, the stream is the same, and anybody can read it.
func TestGzip(t *testing.T) {
	for _, n := range []int{0, 1, tarBlock, minBlock - 1, minBlock, minBlock + cutLook, maxBlock, maxBlock + 1, 7<<20 + 13} {
		for kind, data := range map[string][]byte{"words": words(1, n), "zeros": make([]byte, n)} {
			got, _ := zip(t, data, nil, 1<<20)
			if again, _ := zip(t, data, nil, 4099); !bytes.Equal(got, again) {
				t.Errorf("%d bytes of %s: written in other portions the stream is another", n, kind)
			}
			r, err := gzip.NewReader(bytes.NewReader(got))
			if err != nil {
				t.Fatalf("%d bytes of %s: %v", n, kind, err)
			}
			back, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(back, data) {
				t.Errorf("%d bytes of %s: read back %d bytes, %v", n, kind, len(back), err)
			}
		}
	}
}

// TestGzipVersion holds the bytes of one version: where they change, old blocks must not be mixed with new ones.
func TestGzipVersion(t *testing.T) {
	got, _ := zip(t, words(2, 3<<20), nil, 1<<20)
	sum := sha256.Sum256(got)
	const want = "2 582f232ff46e25d1"
	if have := blocksVersion + " " + hex.EncodeToString(sum[:8]); have != want {
		t.Errorf("the bytes are %s, want %s: if the compressor is to make other bytes, give blocksVersion another value", have, want)
	}
}

// TestGzipReuse: what is taken from an earlier stream gives the bytes that compressing gives, and what is damaged in it, or in what is
// said of it, is compressed instead.
func TestGzipReuse(t *testing.T) {
	data := words(3, 8<<20)
	stream, z := zip(t, data, nil, 1<<20)
	text := formatPieces(z.list)
	edited := bytes.Clone(data)
	copy(edited[5<<20:], "something else")
	inserted := bytes.Clone(append(append(bytes.Clone(data[:4<<20]), words(4, 3*tarBlock)...), data[4<<20:]...))
	for name, c := range map[string]struct {
		data []byte
		most int // of its blocks may be new
	}{"the same": {data, 0}, "edited": {edited, 2}, "inserted": {inserted, 3}, "shorter": {data[:6<<20], 1}} {
		want, _ := zip(t, c.data, nil, 1<<20)
		counting := &countingReader{ReaderAt: bytes.NewReader(stream)}
		got, made := zip(t, c.data, parsePieces(text, counting), 1<<20)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: with old blocks the stream is another", name)
		}
		if fresh := len(made.list) - int(counting.n.Load()); fresh > c.most {
			t.Errorf("%s: %d of %d blocks were compressed", name, fresh, len(made.list))
		}
	}
	for i := 0; i < len(stream); i += 400009 {
		bad := bytes.Clone(stream)
		bad[i] ^= 1 << (i % 8)
		if got, _ := zip(t, data, parsePieces(text, bytes.NewReader(bad)), 1<<20); !bytes.Equal(got, stream) {
			t.Fatalf("a flipped bit at %d of the old stream is in the new one", i)
		}
	}
	short, _ := zip(t, data[:2<<20], nil, 1<<20)
	for i := 0; i < len(text); i += 157 {
		bad := []byte(text)
		bad[i] ^= 1
		for _, list := range []string{string(bad), text[:i]} {
			if got, _ := zip(t, data[:2<<20], parsePieces(list, bytes.NewReader(stream)), 1<<20); !bytes.Equal(got, short) {
				t.Fatalf("damage at %d of the list gives another stream", i)
			}
		}
	}
}

// TestGzipFails: an error of what takes the stream ends the writing of it.
func TestGzipFails(t *testing.T) {
	full := errors.New("no space")
	z := newGzipWriter(failingWriter{full}, gzipLevel, nil)
	data := words(5, 1<<20)
	for i := range 100 {
		if _, err := z.Write(data); err != nil {
			break
		} else if i == 99 {
			t.Error("100 MiB were written to a full disk")
		}
	}
	if err := z.Close(); !errors.Is(err, full) {
		t.Errorf("Close: %v", err)
	}
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }

type countingReader struct {
	io.ReaderAt
	n atomic.Int32
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	c.n.Add(1)
	return c.ReaderAt.ReadAt(p, off)
}
