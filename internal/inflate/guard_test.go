//go:build amd64 || arm64

package inflate

import (
	"bufio"
	"bytes"
	"compress/flate"
	"testing"

	"golang.org/x/sys/unix"
)

// guarded returns size bytes that begin and end at memory that cannot be accessed, if size is a multiple of the page size; otherwise only
// their end does.
func guarded(t testing.TB, size int) []byte {
	page := unix.Getpagesize()
	pages := (size + page - 1) / page * page
	m, err := unix.Mmap(-1, 0, pages+2*page, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(m); err != nil {
			t.Error(err)
		}
	})
	middle := m[page : page+pages]
	if err := unix.Mprotect(middle, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	return middle[pages-size : pages : pages]
}

// outside decodes a stream as a Decoder does, but gives the fast loop memory whose ends cannot be crossed, and all input from where it is to
// the end of that.
func outside(t *testing.T, stream, in, buf []byte) {
	d := NewDecoder(bufio.NewReaderSize(bytes.NewReader(stream), 16)) // too small for the fast loop
	pos, at := 0, 0
	next := func() {
		_, _ = d.src.Discard(d.src.Buffered())
		rest := bytes.NewReader(stream[at:])
		d.src.Reset(rest)
	}
	for {
		if len(buf)-pos < Slack {
			pos = copy(buf, buf[pos-Window:pos])
		}
		if d.state == inSymbols {
			n := copy(in[max(0, len(in)-len(stream)+at):], stream[at:])
			used, to, end := d.fast(in[len(in)-n:], buf, 0, pos)
			if used < 0 || used > n || to < pos || to > len(buf) {
				t.Fatalf("used %d of %d, from %d to %d of %d", used, n, pos, to, len(buf))
			}
			pos, at = to, at+used
			next()
			switch end {
			case blockEnd:
				d.endBlock()
			case corrupt:
				return
			}
		}
		before := d.taken
		var err error
		switch d.state {
		case atBlock:
			err = d.block()
		case inStored:
			pos, err = d.copyStored(buf[:len(buf)-Slack/2], pos)
		case inSymbols:
			pos, err = d.symbols(buf[:min(len(buf), pos+Slack)], 0, pos)
		case atEnd:
			return
		}
		if err != nil {
			return
		}
		at += int(d.taken - before)
		next()
	}
}

// The fast loop touches nothing but its input and output, on valid and on damaged streams.
func TestFastStaysInside(t *testing.T) {
	in, buf := guarded(t, 256<<10), guarded(t, Window+64<<10)
	for _, data := range samples() {
		data = data[:min(len(data), 100<<10)]
		for _, level := range []int{1, 6, flate.HuffmanOnly} {
			stream := compress(t, data, level, 0)
			if len(stream) > len(in) {
				continue
			}
			outside(t, stream, in, buf)
			for i := 0; i < len(stream); i += 1 + len(stream)/30 {
				damaged := bytes.Clone(stream)
				damaged[i] ^= 0x55
				outside(t, damaged, in, buf)
				outside(t, stream[:i], in, buf)
			}
		}
	}
}

func FuzzFastStaysInside(f *testing.F) {
	for _, data := range samples() {
		f.Add(compress(f, data[:min(len(data), 2000)], 6, 0), uint16(1000))
	}
	in, buf := guarded(f, 64<<10), guarded(f, Window+64<<10)
	f.Fuzz(func(t *testing.T, stream []byte, output uint16) {
		if len(stream) <= len(in) {
			outside(t, stream, in, buf[len(buf)-Window-2*Slack-int(output)%8192:])
		}
	})
}
