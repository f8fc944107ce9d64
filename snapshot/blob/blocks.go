package blob

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/kilnbuild/kiln/internal/gunzip"
	"github.com/kilnbuild/kiln/internal/zstdframes"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A compressed stream is made of blocks that are compressed side by side, and kept to be used again when most of a layer is what it
// was. Each is a member of a gzip file, which says its size, or a frame of zstd, so that they can also be decompressed side by side, and
// each without those before. Where one ends is decided by the bytes alone, so that it depends neither on the machine nor on what was
// inserted or removed somewhere before: at the first place after the format's min at which the next cutLook bytes have a check sum that
// ends in as many zeros as its mask has ones. Only places that are multiples of tarBlock are looked at, since everything in a tar begins
// at one.
const (
	tarBlock = 512
	cutLook  = 64
)

// format is how blocks are cut and compressed.
type format struct {
	mediaType string
	// version is that of all that decides the bytes of a block. Blocks of another are not used again, so that the same tar gives the same
	// bytes whatever was there before.
	version string
	// min and max bound the bytes of a block before they are compressed, and maxSize afterwards.
	min, max int
	maxSize  int64
	mask     uint32
	// workers bounds how many blocks are compressed at once, and so the memory.
	workers int
	// compressor returns a function that appends the compressed form of a block to out; each is used for one block at a time. The level
	// was checked when it was asked for.
	compressor func(level int) func(out, in []byte) []byte
	// member returns what is known of a block of the stream without decompressing it.
	member func(stream io.ReaderAt, offset, size int64) (gunzip.Member, error)
}

// formats are those of compressed streams, by type of Compression.
//
// Blocks of gzip have 1 MiB on average. They cost 0.15 to 0.25 % in size more than blocks that refer to the one before, and no time, for
// Debian, Go and Node.js trees; a worker takes 4 MiB. zstd refers to what is further back, so its blocks have 6 to 7 MiB on average and
// cost 0.9 and 1.3 % for Go and Debian, where those of 1 MiB would cost 4 and 9 %, and a sixth more processor time; a worker takes up to 30
// MiB.
var formats = map[string]*format{
	"gzip": {
		mediaType: ocispec.MediaTypeImageLayerGzip, version: "2",
		min: 512 << 10, max: 2 << 20, maxSize: gunzip.MaxSized, mask: 1<<10 - 1, workers: 16,
		compressor: gzipCompressor, member: gunzip.ReadMember,
	},
	"zstd": {
		mediaType: ocispec.MediaTypeImageLayerZstd, version: "z1",
		min: 4 << 20, max: zstdframes.MaxData, maxSize: zstdframes.MaxSize, mask: 1<<13 - 1, workers: 4,
		compressor: zstdCompressor, member: zstdframes.ReadMember,
	},
}

func gzipCompressor(level int) func(out, in []byte) []byte {
	var z *flate.Writer
	return func(out, in []byte) []byte {
		begin := len(out)
		w := sliceWriter{gunzip.AppendHeader(out)}
		if z == nil {
			z, _ = flate.NewWriter(&w, level)
		}
		z.Reset(&w)
		z.Write(in) // a slice takes everything
		z.Close()
		out = gunzip.AppendTrailer(w.b, in)
		gunzip.SetSize(out[begin:])
		return out
	}
}

func zstdCompressor(level int) func(out, in []byte) []byte {
	speed := zstd.SpeedDefault
	if level >= 0 {
		speed = zstd.EncoderLevelFromZstd(level)
	}
	var z *zstd.Encoder
	return func(out, in []byte) []byte {
		if z == nil { // a single segment says how many bytes it has, also if they are few
			z, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(speed), zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true),
				zstd.WithSingleSegment(true))
		}
		return z.EncodeAll(in, out)
	}
}

// formatOf returns the format of the blobs of a media type; nil if they are not made of blocks.
func formatOf(mediaType string) *format {
	for _, f := range formats {
		if f.mediaType == mediaType {
			return f
		}
	}
	return nil
}

// piece is one compressed block of a stream.
type piece struct {
	of     [sha256.Size]byte // the digest of what was compressed
	sum    [sha256.Size]byte // the digest of the compressed bytes
	size   int64             // of the compressed bytes
	offset int64             // of them in the stream
}

// pieces are the blocks of a stream that is in the store.
type pieces struct {
	stream io.ReaderAt
	by     map[[sha256.Size]byte]piece
}

// get returns the compressed form of what has this digest, verified, or nil.
func (p *pieces) get(of [sha256.Size]byte, buf []byte) []byte {
	if p == nil {
		return nil
	}
	found, ok := p.by[of]
	if !ok {
		return nil
	}
	b := append(buf[:0], make([]byte, found.size)...)
	if _, err := p.stream.ReadAt(b, found.offset); err != nil || sha256.Sum256(b) != found.sum {
		return nil
	}
	return b
}

const pieceSize = 2*sha256.Size + 4

// text returns a list of pieces as text without spaces.
func (f *format) text(list []piece) string {
	b := make([]byte, 0, len(list)*pieceSize)
	for _, p := range list {
		b = append(append(b, p.of[:]...), p.sum[:]...)
		b = binary.LittleEndian.AppendUint32(b, uint32(p.size))
	}
	return f.version + ":" + base64.StdEncoding.EncodeToString(b)
}

// current reports whether a blob was made by this version of the compressor, or by none.
func current(b Blob) bool {
	f := formatOf(b.Desc.MediaType)
	return f == nil || strings.HasPrefix(b.pieces, f.version+":")
}

// piecesOf returns the text of what a compressor that is closed made; "" if it does not compress.
func piecesOf(w io.Writer) string {
	if z, ok := w.(*blockWriter); ok {
		return z.format.text(z.list)
	}
	return ""
}

// parsePieces reads what text wrote. What is wrong in it, get notices or never asks for; nil is for no list.
func (f *format) parsePieces(text string, stream io.ReaderAt) *pieces {
	list, ok := f.parseList(text)
	if !ok {
		return nil
	}
	all := &pieces{stream, make(map[[sha256.Size]byte]piece, len(list))}
	for _, p := range list {
		all.by[p.of] = p
	}
	return all
}

// parseList returns the list that text wrote; false if it is none of this format and version.
func (f *format) parseList(text string) ([]piece, bool) {
	text, ok := strings.CutPrefix(text, f.version+":")
	b, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(b)%pieceSize != 0 {
		return nil, false
	}
	list := make([]piece, 0, len(b)/pieceSize)
	offset := int64(0)
	for ; len(b) > 0; b = b[pieceSize:] {
		p := piece{of: [sha256.Size]byte(b), sum: [sha256.Size]byte(b[sha256.Size:]), offset: offset}
		p.size = int64(binary.LittleEndian.Uint32(b[2*sha256.Size:]))
		if p.size > f.maxSize {
			return nil, false
		}
		list = append(list, p)
		offset += p.size
	}
	return list, true
}

// Members returns the members or frames of a blob of the image store, in their order; none for one that is not made of blocks.
func (s Store) Members(b Blob) ([]gunzip.Member, error) {
	f := formatOf(b.Desc.MediaType)
	if f == nil || b.pieces == "" {
		return nil, nil
	}
	path, err := s.CAS.Path(b.Desc.Digest)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	list, ok := f.parseList(b.pieces)
	if !ok {
		return nil, nil
	}
	members := make([]gunzip.Member, len(list))
	for i, p := range list {
		if members[i], err = f.member(file, p.offset, p.size); err != nil {
			return nil, fmt.Errorf("read the members of blob %s: %w", b.Desc.Digest, err)
		}
	}
	return members, nil
}

// blockWriter compresses what is written to it. It is for one goroutine.
type blockWriter struct {
	w      io.Writer
	format *format
	level  int
	old    *pieces // nil for none
	list   []piece // of the stream, once it is closed

	begun  bool // there is a block
	clean  int  // no cut is in what of buf lies before
	next   *block
	queue  chan *block // in order, being compressed
	free   chan *block
	done   chan error
	failed atomic.Bool
}

// block is what is compressed at once, and the buffers for that.
type block struct {
	in       []byte
	out      []byte
	piece    piece
	ready    chan struct{}
	compress func(out, in []byte) []byte
}

// newBlockWriter returns a writer that compresses to w, and takes from old the blocks that are there.
func newBlockWriter(w io.Writer, f *format, level int, old *pieces) *blockWriter {
	workers := min(max(2, runtime.GOMAXPROCS(0)), f.workers)
	z := &blockWriter{
		w: w, format: f, level: level, old: old,
		queue: make(chan *block, workers), free: make(chan *block, workers+1), done: make(chan error, 1),
	}
	for range cap(z.free) {
		z.free <- &block{ready: make(chan struct{}, 1)}
	}
	z.begin()
	go z.write()
	return z
}

// begin takes a block that is free.
func (z *blockWriter) begin() {
	b := <-z.free
	if b.in == nil {
		b.in = make([]byte, 0, z.format.max)
		b.compress = z.format.compressor(z.level)
	}
	b.in = b.in[:0]
	z.next, z.clean = b, z.format.min
}

// Write implements io.Writer. An error of the underlying writer may come with a later call, at the latest with Close.
func (z *blockWriter) Write(p []byte) (int, error) {
	for n := 0; ; {
		if z.failed.Load() {
			return n, io.ErrClosedPipe
		}
		b := z.next
		k := min(len(p)-n, z.format.max-len(b.in))
		b.in = append(b.in, p[n:n+k]...)
		n += k
		for z.cut() {
		}
		if n == len(p) {
			return n, nil
		}
	}
}

// cut ends the block if the place for that is known.
func (z *blockWriter) cut() bool {
	body := z.next.in
	for ; z.clean+cutLook <= len(body) && z.clean < z.format.max; z.clean += tarBlock {
		if crc32.ChecksumIEEE(body[z.clean:z.clean+cutLook])&z.format.mask == 0 {
			z.end(z.clean)
			return true
		}
	}
	if len(body) == z.format.max {
		z.end(len(body))
		return true
	}
	return false
}

// end has the first n bytes compressed, and begins the next block with the others.
func (z *blockWriter) end(n int) {
	b := z.next
	z.begin()
	z.next.in = append(z.next.in, b.in[n:]...)
	b.in = b.in[:n]
	z.begun = true
	z.queue <- b
	go z.compress(b)
}

func (z *blockWriter) compress(b *block) {
	b.piece.of = sha256.Sum256(b.in)
	if have := z.old.get(b.piece.of, b.out); have != nil {
		b.out = have
	} else {
		b.out = b.compress(b.out[:0], b.in)
	}
	b.piece.sum, b.piece.size = sha256.Sum256(b.out), int64(len(b.out))
	b.ready <- struct{}{}
}

// write passes the blocks on in their order.
func (z *blockWriter) write() {
	var err error
	for b := range z.queue {
		<-b.ready
		if err == nil {
			_, err = z.w.Write(b.out)
		}
		if err != nil {
			z.failed.Store(true)
		}
		z.list = append(z.list, b.piece)
		z.free <- b
	}
	z.done <- err
}

// Close ends the stream.
func (z *blockWriter) Close() error {
	if n := len(z.next.in); n > 0 || !z.begun {
		z.end(n)
	}
	close(z.queue)
	return <-z.done
}

// sliceWriter gathers what is written to it.
type sliceWriter struct{ b []byte }

func (s *sliceWriter) Write(p []byte) (int, error) {
	s.b = append(s.b, p...)
	return len(p), nil
}
