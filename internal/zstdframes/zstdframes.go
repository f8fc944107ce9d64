// Package zstdframes decompresses zstd (RFC 8878), small frames beside each other. It does not know what is in them.
package zstdframes

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/readahead"

	"github.com/kilnbuild/kiln/internal/gunzip"
)

// A frame is small if its header says that it has no more than MaxData bytes, and it has no more than MaxSize itself. Where it ends is
// found by going from block to block, without decompressing them. A window of MaxData is one that every decoder should accept (RFC 8878,
// 3.1.1.1.2).
const (
	MaxData = 8 << 20
	MaxSize = MaxData + 64<<10 // bytes that cannot be compressed take 3 more for each 128 KiB
)

// maxWorkers bounds how many frames are decompressed at once, and with that the memory: two more are held, each of up to MaxSize and
// MaxData.
const maxWorkers = 4

// What is read ahead of a frame that is not small, in bytes and blocks.
const (
	aheadBlock  = 512 << 10
	aheadBlocks = 3
)

var errClosed = errors.New("zstdframes: read after Close")

// Reader reads the uncompressed bytes of frames that follow each other. Its errors are those of zstd.Decoder; a stream that ends too early
// is io.ErrUnexpectedEOF. It is for one goroutine.
type Reader struct {
	window uint64
	sum    io.Writer
	queue  chan *frame // in their order
	free   chan *frame
	slots  chan struct{}
	small  *zstd.Decoder

	last   *frame
	rest   []byte // what was not read of it
	stream io.ReadCloser
	err    error

	quit    chan struct{}
	once    sync.Once
	running sync.WaitGroup
}

// frame is a small one, or everything from a frame that is not.
type frame struct {
	in, out []byte
	err     error
	done    chan struct{} // receives a value when out and err are known
	stream  io.Reader     // nil for a small one
}

// NewReader returns a Reader of r, which reads and decompresses in goroutines of its own before the bytes are read. All of them are written
// to sum before they are read, unless it is nil; it must not fail. window is the most memory that a frame which is not small may ask for,
// in bytes. Close must be called; it waits for a Read of r that is under way.
func NewReader(r io.Reader, sum io.Writer, window uint64) (*Reader, error) {
	workers := min(runtime.GOMAXPROCS(0), maxWorkers)
	small, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(workers), zstd.WithDecoderMaxMemory(MaxData))
	if err != nil {
		return nil, err
	}
	frames := workers + 2
	z := &Reader{
		window: window, sum: sum, small: small, quit: make(chan struct{}),
		queue: make(chan *frame, frames), free: make(chan *frame, frames), slots: make(chan struct{}, workers),
	}
	for range frames {
		z.free <- &frame{done: make(chan struct{}, 1)}
	}
	z.running.Go(func() { z.read(bufio.NewReaderSize(r, 64<<10)) })
	return z, nil
}

// read passes the frames on until the stream ends, or one is not small.
func (z *Reader) read(src *bufio.Reader) {
	defer close(z.queue)
	for {
		var f *frame
		select {
		case f = <-z.free:
		case <-z.quit:
			return
		}
		err := f.read(src)
		switch {
		case err == io.EOF:
			return
		case err == errNotSmall: // or it is damaged: then the decoder of the stream says how
			f.stream = io.MultiReader(bytes.NewReader(f.in), src)
		case err != nil:
			f.out, f.err = nil, err
			f.done <- struct{}{}
		}
		z.queue <- f
		if err != nil {
			return
		}
		z.slots <- struct{}{}
		z.running.Go(func() {
			f.out, f.err = z.small.DecodeAll(f.in, f.out[:0])
			<-z.slots
			f.done <- struct{}{}
		})
	}
}

// errNotSmall says that a frame is not small, or not valid.
var errNotSmall = errors.New("the frame is not small")

// read reads a small frame. The error is errNotSmall, with the bytes that were read in f.in; io.EOF at the end of the stream; or that of
// src.
func (f *frame) read(src *bufio.Reader) error {
	f.in = f.in[:0]
	var h zstd.Header
	for {
		head, err := src.Peek(zstd.HeaderMaxSize)
		if len(head) == 0 {
			return err
		}
		if h.Decode(head) != nil {
			return errNotSmall
		}
		if !h.Skippable {
			break
		}
		if _, err := src.Discard(h.HeaderSize + int(h.SkippableSize)); err != nil {
			return cut(err)
		}
	}
	if !h.HasFCS || h.FrameContentSize > MaxData || h.DictionaryID != 0 {
		return errNotSmall
	}
	if err := f.take(src, h.HeaderSize); err != nil {
		return err
	}
	for last := false; !last; {
		if err := f.take(src, 3); err != nil {
			return err
		}
		b := f.in[len(f.in)-3:]
		block := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
		last = block&1 == 1
		size := int(block >> 3)
		switch block >> 1 & 3 {
		case 1: // one byte, repeated
			size = 1
		case 3:
			return errNotSmall
		}
		if err := f.take(src, size); err != nil {
			return err
		}
	}
	if h.HasCheckSum {
		return f.take(src, 4)
	}
	return nil
}

// take reads n more bytes of a frame.
func (f *frame) take(src io.Reader, n int) error {
	if len(f.in)+n > MaxSize {
		return errNotSmall
	}
	begin := len(f.in)
	f.in = append(f.in, make([]byte, n)...)
	n, err := io.ReadFull(src, f.in[begin:])
	f.in = f.in[:begin+n]
	return cut(err)
}

// cut turns the end of the stream inside of a frame into an error.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Read implements io.Reader.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(z.rest) == 0 && z.err == nil && z.stream == nil {
		z.next()
	}
	if z.stream != nil {
		return z.stream.Read(p)
	}
	if len(z.rest) == 0 {
		return 0, z.err
	}
	n := copy(p, z.rest)
	z.rest = z.rest[n:]
	return n, nil
}

// next takes the next frame.
func (z *Reader) next() {
	if z.last != nil {
		z.free <- z.last
		z.last = nil
	}
	f, ok := <-z.queue
	if !ok {
		z.err = io.EOF
		return
	}
	if f.stream != nil {
		z.stream, z.err = z.open(f.stream)
		return
	}
	<-f.done
	z.last, z.rest, z.err = f, f.out, f.err
	if z.sum != nil {
		_, _ = z.sum.Write(z.rest)
	}
}

// open returns a reader of what is decompressed as one stream.
func (z *Reader) open(r io.Reader) (io.ReadCloser, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(z.window))
	if err != nil {
		return nil, err
	}
	plain := d.IOReadCloser()
	if z.sum != nil {
		plain = summed{io.TeeReader(plain, z.sum), plain}
	}
	ahead, err := readahead.NewReadCloserSize(plain, aheadBlocks, aheadBlock)
	if err != nil {
		plain.Close()
		return nil, err
	}
	return ahead, nil
}

type summed struct {
	io.Reader
	io.Closer
}

// Close ends the reading ahead. The Reader cannot be used afterwards.
func (z *Reader) Close() error {
	z.once.Do(func() { close(z.quit) })
	if z.stream != nil {
		z.stream.Close()
		z.stream = nil
	}
	z.running.Wait()
	z.small.Close()
	z.rest, z.err = nil, errClosed
	return nil
}

// ReadMember reads from the header of a small frame, which begins at offset, how much data it has.
func ReadMember(r io.ReaderAt, offset, size int64) (gunzip.Member, error) {
	head := make([]byte, min(size, zstd.HeaderMaxSize))
	if _, err := r.ReadAt(head, offset); err != nil {
		return gunzip.Member{}, err
	}
	var h zstd.Header
	if err := h.Decode(head); err != nil {
		return gunzip.Member{}, err
	}
	if h.Skippable || !h.HasFCS || h.FrameContentSize > MaxData {
		return gunzip.Member{}, errNotSmall
	}
	return gunzip.Member{Size: size, Data: int64(h.FrameContentSize)}, nil
}
