package gunzip

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/kilnbuild/kiln/internal/inflate"
)

// ways are how a Reader can be read.
var ways = map[string]func(io.Reader) ([]byte, error){
	"Read": func(r io.Reader) ([]byte, error) {
		z, err := NewReader(r)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		return io.ReadAll(struct{ io.Reader }{z})
	},
	"WriteTo": func(r io.Reader) ([]byte, error) {
		z, err := NewReader(r)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		var b bytes.Buffer
		_, err = z.WriteTo(&b)
		return b.Bytes(), err
	},
	"Ahead": func(r io.Reader) ([]byte, error) {
		z, err := NewReader(r)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		z.Ahead(nil)
		return io.ReadAll(struct{ io.Reader }{z})
	},
	"Ahead with a sum": func(r io.Reader) ([]byte, error) {
		z, err := NewReader(r)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		var sum bytes.Buffer
		z.Ahead(&sum)
		got, err := io.ReadAll(struct{ io.Reader }{z})
		if err == nil && !bytes.Equal(sum.Bytes(), got) {
			err = errors.New("the sum has other bytes")
		}
		return got, err
	},
	"Ahead after the first bytes": func(r io.Reader) ([]byte, error) {
		z, err := NewReader(r)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		var b bytes.Buffer
		if _, err := io.CopyN(&b, struct{ io.Reader }{z}, 1000); err != nil {
			return b.Bytes(), noErr(err)
		}
		z.Ahead(nil)
		_, err = z.WriteTo(&b)
		return b.Bytes(), err
	},
}

// standard is how compress/gzip reads; but a header with reserved bits is invalid (RFC 1952, 2.3.1.2).
func standard(file []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func check(t *testing.T, file []byte, split func(io.Reader) io.Reader) {
	t.Helper()
	want, wantErr := standard(file)
	for name, read := range ways {
		got, err := read(split(bytes.NewReader(file)))
		_, corrupt := errors.AsType[inflate.CorruptError](err)
		switch {
		case (err == nil) != (wantErr == nil):
			t.Fatalf("%s: error %v, compress/gzip has %v", name, err, wantErr)
		case (errors.Is(wantErr, gzip.ErrChecksum) || errors.Is(wantErr, gzip.ErrHeader) || wantErr == io.EOF) && err != wantErr:
			t.Fatalf("%s: error %v, compress/gzip has %v", name, err, wantErr)
		case wantErr == io.ErrUnexpectedEOF && err != wantErr && !corrupt || wantErr != io.ErrUnexpectedEOF && !bytes.Equal(got, want) ||
			!bytes.HasPrefix(got, want):
			t.Fatalf("%s: %d bytes and %v, compress/gzip has %d bytes and %v", name, len(got), err, len(want), wantErr)
		}
	}
}

func whole(r io.Reader) io.Reader { return r }

// member returns a member of a gzip file.
func member(t testing.TB, data []byte, set func(*gzip.Header)) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	set(&w.Header)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func plain(*gzip.Header) {}

func text(n int) []byte {
	random := rand.New(rand.NewPCG(5, 6))
	var b []byte
	for len(b) < n {
		b = fmt.Appendf(b, "%d %x\n", len(b), random.Uint32()>>20)
	}
	return b[:n]
}

func TestFiles(t *testing.T) {
	named := member(t, []byte("hello"), func(h *gzip.Header) { h.Name, h.Comment, h.Extra = "näme", "a comment", []byte("\x01\x02\x00\x00") })
	extra := member(t, []byte("hello"), func(h *gzip.Header) { h.Extra = bytes.Repeat([]byte("x"), 0xffff) })
	summed := bytes.Clone(named) // compress/gzip writes no FHCRC
	summed[3] |= hasSum
	header := bytes.Index(named, []byte("a comment\x00")) + len("a comment\x00")
	sums := crc32.ChecksumIEEE(summed[:header])
	withSum := append(append(bytes.Clone(summed[:header]), byte(sums), byte(sums>>8)), named[header:]...)
	wrongSum := append(append(bytes.Clone(summed[:header]), byte(sums), byte(sums>>8)+1), named[header:]...)
	large, small := member(t, text(3<<20), plain), member(t, text(100), plain)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	wrong := func(file []byte, fromEnd int) []byte {
		file = bytes.Clone(file)
		file[len(file)-fromEnd]++
		return file
	}
	for name, file := range map[string][]byte{
		"empty file":           {},
		"empty member":         member(t, nil, plain),
		"small":                small,
		"large":                large,
		"all fields":           named,
		"long extra field":     extra,
		"long name":            member(t, nil, func(h *gzip.Header) { h.Name = string(bytes.Repeat([]byte("n"), maxText-1)) }),
		"name too long":        member(t, nil, func(h *gzip.Header) { h.Name = string(bytes.Repeat([]byte("n"), maxText)) }),
		"header sum":           withSum,
		"wrong header sum":     wrongSum,
		"members":              join(small, large, small, member(t, nil, plain), large, named, withSum),
		"many members":         bytes.Repeat(small, 1000),
		"zero padding":         join(large, make([]byte, 512)),
		"short zero padding":   join(small, make([]byte, 5)),
		"garbage":              join(small, []byte("something else that is no gzip")),
		"wrong check sum":      wrong(large, 8),
		"wrong length":         wrong(large, 4),
		"wrong sum, then more": join(wrong(small, 8), large),
		"wrong magic":          wrong(small, len(small)),
		"wrong method":         wrong(small, len(small)-2),
		"corrupt":              wrong(large, 2<<19),
		"no trailer":           large[:len(large)-8],
		"short trailer":        large[:len(large)-1],
		"cut header":           join(small, small[:7]),
		"cut data":             large[:len(large)/2],
	} {
		t.Run(name, func(t *testing.T) {
			check(t, file, whole)
			check(t, file, iotest.DataErrReader)
			if len(file) < 200_000 {
				check(t, file, iotest.OneByteReader)
			} else {
				check(t, file, iotest.HalfReader)
			}
		})
	}
}

// A reserved flag is an error, as gzip(1) and RFC 1952 have it.
func TestReservedFlag(t *testing.T) {
	file := member(t, []byte("x"), plain)
	file[3] |= 0x20
	if _, err := NewReader(bytes.NewReader(file)); err != gzip.ErrHeader {
		t.Error(err)
	}
}

// Every length that a small file can be cut to, and every byte of it damaged.
func TestDamaged(t *testing.T) {
	file := member(t, text(300), func(h *gzip.Header) { h.Name, h.Comment, h.Extra = "n", "c", []byte("ex\x00\x00") })
	for i := 0; i < len(file); i += 1 + i/60 {
		check(t, file[:i], whole)
		damaged := bytes.Clone(file)
		damaged[i] ^= 0x04
		if i != 3 || damaged[3]&reserved == 0 {
			check(t, damaged, whole)
			check(t, append(bytes.Clone(file), damaged...), whole)
		}
	}
}

// A Reader that reads ahead is closed at any point, also while its source has no more to give, and gives nothing afterwards.
func TestClose(t *testing.T) {
	file := bytes.Repeat(member(t, text(2<<20), plain), 5)
	for _, n := range []int64{0, 1, 1 << 20, 5 << 20, 10 << 20} {
		z, err := NewReader(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		z.Ahead(nil)
		if _, err := io.CopyN(io.Discard, z, n); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := z.Close(); err != nil {
				t.Error(err)
			}
		}
		if n, err := z.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
			t.Errorf("%d bytes and %v after Close", n, err)
		}
	}
}

// An error of the source comes after what was read of it, and stays.
func TestSourceError(t *testing.T) {
	broken := errors.New("broken")
	file := member(t, text(2<<20), plain)
	for _, ahead := range []bool{false, true} {
		z, err := NewReader(io.MultiReader(bytes.NewReader(file[:len(file)/2]), iotest.ErrReader(broken)))
		if err != nil {
			t.Fatal(err)
		}
		if ahead {
			z.Ahead(nil)
		}
		got, err := io.ReadAll(z)
		if err != broken || len(got) < 1<<19 || !bytes.HasPrefix(text(2<<20), got) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if _, again := z.Read(make([]byte, 1)); again != broken {
			t.Error(again)
		}
		z.Close()
	}
}

func FuzzReader(f *testing.F) {
	small := member(f, []byte("hello, hello"), func(h *gzip.Header) { h.Name, h.Comment, h.Extra = "n", "c", []byte("ex\x00\x00") })
	f.Add(small, uint8(3))
	f.Add(append(bytes.Clone(small), small...), uint8(200))
	f.Add(member(f, text(5000), plain), uint8(0))
	f.Fuzz(func(t *testing.T, file []byte, piece uint8) {
		for rest := file; ; {
			i := bytes.Index(rest, []byte{0x1f, 0x8b, deflate})
			if i < 0 || len(rest) < i+4 {
				break
			}
			if rest[i+3]&reserved != 0 {
				t.Skip("compress/gzip ignores reserved flags")
			}
			rest = rest[i+1:]
		}
		check(t, file, func(r io.Reader) io.Reader { return &pieces{r, int(piece) + 1} })
	})
}

// pieces reads n bytes at a time.
type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }
