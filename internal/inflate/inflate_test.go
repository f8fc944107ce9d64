package inflate

import (
	"bufio"
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

// decode decodes a stream by a Decoder whose source gives a few bytes at a time, into buffers of a few bytes more than it needs.
func decode(r io.Reader, input, output int) ([]byte, error) {
	src := bufio.NewReaderSize(r, input)
	return decodeAll(NewDecoder(src), output)
}

func decodeAll(d *Decoder, output int) ([]byte, error) {
	var all []byte
	buf := make([]byte, Window+output+Slack)
	for {
		from := copy(buf, all[max(0, len(all)-Window):])
		to, err := d.Decode(buf, from)
		all = append(all, buf[from:to]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		if to == from {
			return all, errors.New("Decode did nothing")
		}
	}
}

// check compares a Decoder with compress/flate: the same bytes, or an error of the same kind, after the same bytes.
func check(t *testing.T, stream []byte, split func(io.Reader) io.Reader, input, output int) {
	t.Helper()
	want, wantErr := io.ReadAll(flate.NewReader(bytes.NewReader(stream)))
	got, err := decode(split(bytes.NewReader(stream)), input, output)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("error %v, compress/flate has %v", err, wantErr)
	}
	if wantErr == io.ErrUnexpectedEOF {
		// compress/flate stops where no end of the block fits any more.
		if !bytes.HasPrefix(got, want) {
			t.Fatalf("%d bytes do not begin with the %d of compress/flate", len(got), len(want))
		}
		return
	}
	if _, corrupt := errors.AsType[CorruptError](err); wantErr != nil && !corrupt {
		t.Fatalf("error %v, compress/flate has %v", err, wantErr)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes differ from the %d of compress/flate (%v)", len(got), len(want), err)
	}
}

var splits = map[string]func(io.Reader) io.Reader{
	"whole":    func(r io.Reader) io.Reader { return r },
	"bytes":    iotest.OneByteReader,
	"halves":   iotest.HalfReader,
	"with EOF": iotest.DataErrReader,
	"random":   func(r io.Reader) io.Reader { return &randomReader{r, rand.New(rand.NewPCG(1, 2))} },
}

// randomReader reads up to 100 bytes at a time.
type randomReader struct {
	r    io.Reader
	rand *rand.Rand
}

func (r *randomReader) Read(p []byte) (int, error) {
	return r.r.Read(p[:min(len(p), 1+r.rand.IntN(100))])
}

// samples are bytes that take all kinds of blocks, codes and matches to compress.
func samples() map[string][]byte {
	random := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, 200<<10)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	// Bytes whose numbers fall by the golden ratio need the longest codes; in blocks of different sets of bytes.
	var skewed []byte
	for block := range 8 {
		n := 1.0
		for symbol := range 24 {
			for range int(n) {
				skewed = append(skewed, byte(block*24+symbol))
			}
			n *= 1.55
		}
	}
	random.Shuffle(len(skewed), func(i, j int) { skewed[i], skewed[j] = skewed[j], skewed[i] })
	// Matches of every length at every short distance, and at some long ones.
	var matches []byte
	for offset := 1; offset < 70; offset++ {
		for _, length := range []int{3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 257, 258} {
			at := random.IntN(len(noise) - offset)
			matches = append(matches, noise[at:at+offset]...)
			for range length {
				matches = append(matches, matches[len(matches)-offset])
			}
		}
	}
	for _, offset := range []int{1000, 5000, Window - 300, Window - 1, Window} {
		for len(matches) < offset {
			matches = append(matches, byte(random.Uint32()))
		}
		for range 20 {
			matches = append(matches, matches[len(matches)-offset:][:100]...)
			matches = append(matches, byte(random.Uint32()))
		}
	}
	var text []byte
	for i := range 20000 {
		text = fmt.Appendf(text, "line %d of %d: %x\n", i, i*i%1000, random.Uint32()>>16)
	}
	return map[string][]byte{
		"empty": nil, "one byte": {'x'}, "zeros": make([]byte, 300<<10), "noise": noise, "skewed": skewed, "matches": matches, "text": text,
	}
}

func compress(t testing.TB, data []byte, level int, flush int) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 && flush > 0 {
		n := min(len(data), flush)
		if _, err := w.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDecode(t *testing.T) {
	all := samples()
	for name, data := range samples() {
		all["short "+name] = data[:min(len(data), 9000)]
	}
	for name, data := range all {
		for _, level := range []int{flate.HuffmanOnly, 0, 1, 6} {
			for _, flush := range []int{0, 10000} {
				stream := compress(t, data, level, flush)
				for split, f := range splits {
					t.Run(fmt.Sprintf("%s/level %d/flush %d/%s", name, level, flush, split), func(t *testing.T) {
						check(t, stream, f, 4096, 5000)
						check(t, stream, f, 64<<10, 1<<20)
						if len(data) < 10000 {
							check(t, stream, f, 16, 0)
						}
					})
				}
			}
		}
	}
}

// The source stays at the byte after the stream, whatever it holds and how much the Decoder has looked at.
func TestPosition(t *testing.T) {
	for name, data := range samples() {
		stream := compress(t, data, 6, 0)
		rest := []byte("what follows, long enough to be loaded with the last symbols")
		src := bufio.NewReaderSize(bytes.NewReader(append(append(append([]byte(nil), stream...), stream...), rest...)), 1<<20)
		d := NewDecoder(src)
		for range 2 {
			got, err := decodeAll(d, 1<<20)
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%s: %d bytes, %v", name, len(got), err)
			}
			d.Reset()
		}
		if got, err := io.ReadAll(src); err != nil || !bytes.Equal(got, rest) {
			t.Errorf("%s: %q follows, %v", name, got, err)
		}
	}
}

// A stream does not refer to what was decoded of the one before.
func TestResetForgets(t *testing.T) {
	first := compress(t, []byte("0123456789"), 6, 0)
	second := write(1, 1, 2, 1, 7, 1<<6, 5, 0, 7, 0) // a match of three bytes, one byte back; the end
	d := NewDecoder(bufio.NewReader(bytes.NewReader(append(first, second...))))
	buf := make([]byte, 1<<10)
	n, err := d.Decode(buf, 0)
	if n != 10 || err != io.EOF {
		t.Fatal(n, err)
	}
	d.Reset()
	if _, err = d.Decode(buf, n); !errors.As(err, new(CorruptError)) {
		t.Errorf("error %v", err)
	}
}

// write returns bits as a stream: pairs of a number of bits and their value, which is written from its lowest bit on.
func write(pairs ...uint64) []byte {
	var out []byte
	var bits uint64
	n := uint64(0)
	for i := 0; i < len(pairs); i += 2 {
		bits |= pairs[i+1] << n
		for n += pairs[i]; n >= 8; n -= 8 {
			out = append(out, byte(bits))
			bits >>= 8
		}
	}
	return append(out, byte(bits))
}

// Every byte of streams of all kinds is damaged in several ways, and every length cut off.
func TestDamaged(t *testing.T) {
	var streams [][]byte
	for _, data := range samples() {
		data = data[:min(len(data), 3000)]
		streams = append(streams, compress(t, data, 0, 0), compress(t, data, 6, 0), compress(t, data, flate.HuffmanOnly, 700))
	}
	for _, stream := range streams {
		step := max(1, len(stream)/60)
		for i := 0; i < len(stream); i += step {
			check(t, stream[:i], splits["whole"], 4096, 5000)
			for _, flip := range []byte{1, 0x10, 0x80, 0xff} {
				damaged := bytes.Clone(stream)
				damaged[i] ^= flip
				check(t, damaged, splits["whole"], 4096, 5000)
				check(t, damaged, splits["bytes"], 16, 5000)
			}
		}
	}
}

// An error of the source is returned as it is, after what came before it.
func TestSourceError(t *testing.T) {
	data := samples()["text"]
	stream := compress(t, data, 6, 0)
	broken := errors.New("broken")
	got, err := decode(io.MultiReader(bytes.NewReader(stream[:len(stream)/2]), iotest.ErrReader(broken)), 4096, 5000)
	if err != broken || len(got) < len(data)/4 || !bytes.HasPrefix(data, got) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, data := range samples() {
		data = data[:min(len(data), 2000)]
		for _, level := range []int{0, 1, 6, flate.HuffmanOnly} {
			f.Add(compress(f, data, level, 0), uint16(1000), uint16(1000))
			f.Add(compress(f, data, level, 300), uint16(1), uint16(1))
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte, piece, output uint16) {
		split := func(r io.Reader) io.Reader { return &pieces{r, int(piece)%300 + 1} }
		check(t, stream, split, 16+int(piece), int(output))
		check(t, stream, splits["whole"], 64<<10, 1<<20)
	})
}

// FuzzRoundTrip has the fuzzer change what is compressed, so that the streams are valid.
func FuzzRoundTrip(f *testing.F) {
	for _, data := range samples() {
		f.Add(data[:min(len(data), 2000)], uint8(6), uint16(0), uint16(1000))
	}
	f.Fuzz(func(t *testing.T, data []byte, level uint8, flush, output uint16) {
		repeated := bytes.Repeat(data, 1+int(output)%40)
		stream := compress(t, repeated, int(level)%12-2, int(flush))
		got, err := decode(bytes.NewReader(stream), 64<<10, int(output))
		if err != nil || !bytes.Equal(got, repeated) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(repeated), err)
		}
	})
}

// pieces reads n bytes at a time.
type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }
