package gunzip

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"testing"

	klauspost "github.com/klauspost/compress/gzip"
)

// BenchmarkReader decompresses a program and some text, with check sums, on one processor. What counts is how the rates compare;
// go run ./bench -gunzip FILE,… compares them for layers.
func BenchmarkReader(b *testing.B) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		b.Fatal(err)
	}
	data = append(data, text(len(data)/2)...)
	file := member(b, data, plain)
	for name, open := range map[string]func(io.Reader) (io.Reader, error){
		"kiln":      func(r io.Reader) (io.Reader, error) { return NewReader(r) },
		"klauspost": func(r io.Reader) (io.Reader, error) { return klauspost.NewReader(r) },
		"standard":  func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			buf := make([]byte, 256<<10)
			for b.Loop() {
				z, err := open(bytes.NewReader(file))
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{z}, buf); n != int64(len(data)) || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}
