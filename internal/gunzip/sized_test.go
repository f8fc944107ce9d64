package gunzip

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/kilnbuild/kiln/internal/inflate"
)

// sizedMember returns a member that says its size.
func sizedMember(t testing.TB, data []byte) []byte {
	b := bytes.NewBuffer(AppendHeader(nil))
	w, err := flate.NewWriter(b, 6)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := AppendTrailer(b.Bytes(), data)
	SetSize(file)
	return file
}

func TestSized(t *testing.T) {
	large, small, empty := sizedMember(t, text(700<<10)), sizedMember(t, text(1000)), sizedMember(t, nil)
	unsized := member(t, text(700<<10), plain)
	for name, parts := range map[string][][]byte{
		"one":          {large},
		"empty":        {empty},
		"many":         {large, small, large, empty, small, large, large, large, large, large, large, large, large, small},
		"others too":   {large, unsized, unsized, large, small, unsized, small},
		"others first": {unsized, large, large},
		"garbage":      {large, small, []byte("this is no gzip file")},
	} {
		file := bytes.Join(parts, nil)
		t.Run(name, func(t *testing.T) {
			check(t, file, whole)
			check(t, file, iotest.HalfReader)
		})
	}
}

// What a member says of its size, and all the rest of it, is compared with what it has.
func TestSizedDamaged(t *testing.T) {
	first, second := sizedMember(t, text(100<<10)), sizedMember(t, text(200<<10))
	at := len(first)
	file := append(bytes.Clone(first), second...)
	size := func(n int) []byte {
		file := bytes.Clone(file)
		binary.LittleEndian.PutUint32(file[at+headerSize-4:], uint32(n))
		return file
	}
	flip := func(i int) []byte {
		file := bytes.Clone(file)
		file[i] ^= 0x41
		return file
	}
	zeros := append(AppendHeader(nil), make([]byte, 100)...) // a stored block with a wrong length
	SetSize(zeros)
	tooLong := sizedMember(t, make([]byte, MaxSized+1))
	for name, c := range map[string]struct {
		file []byte
		want error // nil for an inflate.CorruptError
	}{
		"size too small for a header":  {size(headerSize), gzip.ErrHeader},
		"size too large":               {size(MaxSized + 1), gzip.ErrHeader},
		"size with more than the file": {size(len(second) + 1), io.ErrUnexpectedEOF},
		"size without the last byte":   {size(len(second) - 1), gzip.ErrHeader},
		"too much data":                {append(bytes.Clone(file), tooLong...), gzip.ErrHeader},
		"wrong check sum":              {flip(len(file) - 8), gzip.ErrChecksum},
		"wrong length":                 {flip(len(file) - 4), gzip.ErrChecksum},
		"cut off":                      {file[:len(file)-1], io.ErrUnexpectedEOF},
		"corrupt":                      {append(bytes.Clone(first), zeros...), nil},
	} {
		z, err := NewReader(bytes.NewReader(c.file))
		if err != nil {
			t.Fatal(err)
		}
		z.Ahead(nil)
		got, err := io.ReadAll(z)
		z.Close()
		if _, corrupt := errors.AsType[inflate.CorruptError](err); corrupt {
			err = nil
		}
		if err != c.want || !bytes.HasPrefix(got, text(100<<10)) {
			t.Errorf("%s: %v after %d bytes, want %v", name, err, len(got), c.want)
		}
	}
}

// A Reader is closed while members are being decoded.
func TestSizedClose(t *testing.T) {
	file := bytes.Repeat(sizedMember(t, text(600<<10)), 20)
	for _, n := range []int64{0, 1, 1 << 20, 6 << 20} {
		z, err := NewReader(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		var sum bytes.Buffer
		z.Ahead(&sum)
		if _, err := io.CopyN(io.Discard, z, n); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Whatever is damaged, the result is an error or what compress/gzip reads.
func FuzzSized(f *testing.F) {
	f.Add([]byte("hello"), uint32(0), uint8(0), uint8(3))
	f.Add([]byte("hello, hello, hello"), uint32(20), uint8(1), uint8(200))
	f.Fuzz(func(t *testing.T, data []byte, at uint32, change, piece uint8) {
		file := append(sizedMember(t, data), sizedMember(t, bytes.Repeat(data, 1+int(piece)))...)
		file[int(at)%len(file)] ^= change
		want, wantErr := standard(file)
		for name, read := range ways {
			got, err := read(&pieces{bytes.NewReader(file), int(piece) + 1})
			if err == nil && (wantErr != nil || !bytes.Equal(got, want)) {
				t.Fatalf("%s: %d bytes, compress/gzip has %d and %v", name, len(got), len(want), wantErr)
			}
			_, corrupt := errors.AsType[inflate.CorruptError](err)
			if err != nil && !corrupt && err != gzip.ErrHeader && err != gzip.ErrChecksum && err != io.ErrUnexpectedEOF {
				t.Fatalf("%s: %v", name, err)
			}
			if err != nil && change == 0 {
				t.Fatalf("%s: %v", name, err)
			}
		}
	})
}
