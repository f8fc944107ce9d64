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

	"github.com/klauspost/compress/zstd"
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

func compressed(t *testing.T, f *format, data []byte, old *pieces, chunk int) ([]byte, *blockWriter) {
	t.Helper()
	var out bytes.Buffer
	z := newBlockWriter(&out, f, 6, old)
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

// plain decompresses a stream as anybody can.
func plain(stream []byte) ([]byte, error) {
	if len(stream) > 0 && stream[0] == 0x1f {
		r, err := gzip.NewReader(bytes.NewReader(stream))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	}
	r, err := zstd.NewReader(bytes.NewReader(stream))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// TestBlocks: whatever the size and however it is written, the stream is the same, and anybody can read it.
func TestBlocks(t *testing.T) {
	for name, f := range formats {
		for _, n := range []int{0, 1, tarBlock, f.min - 1, f.min, f.min + cutLook, f.max + 1, 2*f.max + 13} {
			for kind, data := range map[string][]byte{"words": words(1, n), "zeros": make([]byte, n)} {
				got, z := compressed(t, f, data, nil, 1<<20)
				if again, _ := compressed(t, f, data, nil, 4099); !bytes.Equal(got, again) {
					t.Errorf("%s: %d bytes of %s: written in other portions the stream is another", name, n, kind)
				}
				if back, err := plain(got); err != nil || !bytes.Equal(back, data) {
					t.Errorf("%s: %d bytes of %s: read back %d bytes, %v", name, n, kind, len(back), err)
				}
				at, size := int64(0), int64(0)
				list, _ := f.parseList(f.text(z.list))
				for _, p := range list {
					m, err := f.member(bytes.NewReader(got), p.offset, p.size)
					if err != nil || p.offset != at {
						t.Errorf("%s: %d bytes of %s: the member at %d: %v", name, n, kind, at, err)
					}
					at, size = at+m.Size, size+m.Data
				}
				if at != int64(len(got)) || size != int64(n) {
					t.Errorf("%s: %d bytes of %s: the members have %d bytes of %d, and %d of data", name, n, kind, at, len(got), size)
				}
			}
		}
	}
}

// TestVersion holds the bytes of one version: where they change, old blocks must not be mixed with new ones.
func TestVersion(t *testing.T) {
	for name, want := range map[string]string{"gzip": "2 582f232ff46e25d1", "zstd": "z1 d40fc4b14fad5819"} {
		f := formats[name]
		got, _ := compressed(t, f, words(2, 3<<20), nil, 1<<20)
		sum := sha256.Sum256(got)
		if have := f.version + " " + hex.EncodeToString(sum[:8]); have != want {
			t.Errorf("%s: the bytes are %s, want %s: if the compressor is to make other bytes, give its format another version", name, have, want)
		}
	}
}

// TestReuse: what is taken from an earlier stream gives the bytes that compressing gives, and what is damaged in it, or in what is
// said of it, is compressed instead.
func TestReuse(t *testing.T) {
	for name, f := range formats {
		t.Run(name, func(t *testing.T) { testReuse(t, f) })
	}
}

func testReuse(t *testing.T, f *format) {
	unit := f.max
	data := words(3, 4*unit)
	stream, z := compressed(t, f, data, nil, 1<<20)
	text := f.text(z.list)
	edited := bytes.Clone(data)
	copy(edited[2*unit+unit/2:], "something else")
	inserted := bytes.Clone(append(append(bytes.Clone(data[:2*unit]), words(4, 3*tarBlock)...), data[2*unit:]...))
	for name, c := range map[string]struct {
		data []byte
		most int // of its blocks may be new
	}{"the same": {data, 0}, "edited": {edited, 2}, "inserted": {inserted, 3}, "shorter": {data[:3*unit], 1}} {
		want, _ := compressed(t, f, c.data, nil, 1<<20)
		counting := &countingReader{ReaderAt: bytes.NewReader(stream)}
		got, made := compressed(t, f, c.data, f.parsePieces(text, counting), 1<<20)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: with old blocks the stream is another", name)
		}
		if fresh := len(made.list) - int(counting.n.Load()); fresh > c.most {
			t.Errorf("%s: %d of %d blocks were compressed", name, fresh, len(made.list))
		}
	}
	for i := 0; i < len(stream); i += len(stream)/10 + 1 {
		bad := bytes.Clone(stream)
		bad[i] ^= 1 << (i % 8)
		if got, _ := compressed(t, f, data, f.parsePieces(text, bytes.NewReader(bad)), 1<<20); !bytes.Equal(got, stream) {
			t.Fatalf("a flipped bit at %d of the old stream is in the new one", i)
		}
	}
	short, _ := compressed(t, f, data[:unit], nil, 1<<20)
	for i := 0; i < len(text); i += len(text)/8 + 1 {
		bad := []byte(text)
		bad[i] ^= 1
		for _, list := range []string{string(bad), text[:i]} {
			if got, _ := compressed(t, f, data[:unit], f.parsePieces(list, bytes.NewReader(stream)), 1<<20); !bytes.Equal(got, short) {
				t.Fatalf("damage at %d of the list gives another stream", i)
			}
		}
	}
}

// TestFails: an error of what takes the stream ends the writing of it.
func TestFails(t *testing.T) {
	full := errors.New("no space")
	for name, f := range formats {
		z := newBlockWriter(failingWriter{full}, f, 6, nil)
		data := words(5, 1<<20)
		for i := range 300 {
			if _, err := z.Write(data); err != nil {
				break
			} else if i == 299 {
				t.Errorf("%s: 300 MiB were written to a full disk", name)
			}
		}
		if err := z.Close(); !errors.Is(err, full) {
			t.Errorf("%s: Close: %v", name, err)
		}
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
