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
	"github.com/klauspost/compress/flate"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A gzip stream is made of blocks that are compressed side by side, and kept to be used again when most of a layer is what it
// was. Each is a member of its own, which says its size, so that members can also be decompressed side by side, and each without those
// before. Where one ends is decided by the bytes alone, so that it depends neither on the machine nor on what was inserted
// or removed somewhere before: at the first place after minBlock at which the next cutLook bytes have a check sum
// that ends in as many zeros as cutMask has ones, one in 1024. Only places that are multiples of tarBlock are looked at,
// since everything in a tar begins at one. Blocks are 1 MiB on average. Members cost 0.15 to 0.25 % in size
// more than blocks that refer to the one before, and no time, for Debian, Go and Node.js trees.
const (
	minBlock = 512 << 10
	maxBlock = 2 << 20
	tarBlock = 512
	cutLook  = 64
	cutMask  = 1<<10 - 1
)

// blocksVersion is that of all that decides the bytes of a block. Blocks of another are not used again, so that the same tar gives
// the same bytes whatever was there before.
const blocksVersion = "2"

// maxWorkers bounds the memory that compression takes, 4 MiB for each.
const maxWorkers = 16

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

// formatPieces returns a list of pieces as text without spaces.
func formatPieces(list []piece) string {
	b := make([]byte, 0, len(list)*pieceSize)
	for _, p := range list {
		b = append(append(b, p.of[:]...), p.sum[:]...)
		b = binary.LittleEndian.AppendUint32(b, uint32(p.size))
	}
	return blocksVersion + ":" + base64.StdEncoding.EncodeToString(b)
}

// current reports whether a blob was made by this version of the compressor, or by none.
func current(b Blob) bool {
	return b.Desc.MediaType != ocispec.MediaTypeImageLayerGzip || strings.HasPrefix(b.pieces, blocksVersion+":")
}

// piecesOf returns the text of what a compressor that is closed made; "" if that is not gzip.
func piecesOf(w io.Writer) string {
	if z, ok := w.(*gzipWriter); ok {
		return formatPieces(z.list)
	}
	return ""
}

// parsePieces reads what formatPieces wrote. What is wrong in it, get notices or never asks for; nil is for no list.
func parsePieces(text string, stream io.ReaderAt) *pieces {
	list, ok := parseList(text)
	if !ok {
		return nil
	}
	all := &pieces{stream, make(map[[sha256.Size]byte]piece, len(list))}
	for _, p := range list {
		all.by[p.of] = p
	}
	return all
}

// parseList returns the list that formatPieces wrote; false if it is none of this version.
func parseList(text string) ([]piece, bool) {
	text, ok := strings.CutPrefix(text, blocksVersion+":")
	b, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(b)%pieceSize != 0 {
		return nil, false
	}
	list := make([]piece, 0, len(b)/pieceSize)
	offset := int64(0)
	for ; len(b) > 0; b = b[pieceSize:] {
		p := piece{of: [sha256.Size]byte(b), sum: [sha256.Size]byte(b[sha256.Size:]), offset: offset}
		p.size = int64(binary.LittleEndian.Uint32(b[2*sha256.Size:]))
		if p.size > gunzip.MaxSized {
			return nil, false
		}
		list = append(list, p)
		offset += p.size
	}
	return list, true
}

// Members returns the members of a blob of the image store, in their order; none for one that is not made of members.
func (s Store) Members(b Blob) ([]gunzip.Member, error) {
	if b.pieces == "" {
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
	list, ok := parseList(b.pieces)
	if !ok {
		return nil, nil
	}
	members := make([]gunzip.Member, len(list))
	for i, p := range list {
		if members[i], err = gunzip.ReadMember(file, p.offset, p.size); err != nil {
			return nil, fmt.Errorf("read the members of blob %s: %w", b.Desc.Digest, err)
		}
	}
	return members, nil
}

// gzipWriter compresses what is written to it. It is for one goroutine.
type gzipWriter struct {
	w     io.Writer
	level int
	old   *pieces // nil for none
	list  []piece // of the stream, once it is closed

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
	in    []byte
	out   []byte
	piece piece
	ready chan struct{}
	flate *flate.Writer
}

// newGzipWriter returns a writer that compresses to w, and takes from old the blocks that are there.
func newGzipWriter(w io.Writer, level int, old *pieces) *gzipWriter {
	workers := min(max(2, runtime.GOMAXPROCS(0)), maxWorkers)
	z := &gzipWriter{
		w: w, level: level, old: old,
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
func (z *gzipWriter) begin() {
	b := <-z.free
	if b.in == nil {
		b.in = make([]byte, 0, maxBlock)
	}
	b.in = b.in[:0]
	z.next, z.clean = b, minBlock
}

// Write implements io.Writer. An error of the underlying writer may come with a later call, at the latest with Close.
func (z *gzipWriter) Write(p []byte) (int, error) {
	for n := 0; ; {
		if z.failed.Load() {
			return n, io.ErrClosedPipe
		}
		b := z.next
		k := min(len(p)-n, maxBlock-len(b.in))
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
func (z *gzipWriter) cut() bool {
	body := z.next.in
	for ; z.clean+cutLook <= len(body) && z.clean < maxBlock; z.clean += tarBlock {
		if crc32.ChecksumIEEE(body[z.clean:z.clean+cutLook])&cutMask == 0 {
			z.end(z.clean)
			return true
		}
	}
	if len(body) == maxBlock {
		z.end(maxBlock)
		return true
	}
	return false
}

// end has the first n bytes compressed, and begins the next block with the others.
func (z *gzipWriter) end(n int) {
	b := z.next
	z.begin()
	z.next.in = append(z.next.in, b.in[n:]...)
	b.in = b.in[:n]
	z.begun = true
	z.queue <- b
	go z.compress(b)
}

func (z *gzipWriter) compress(b *block) {
	b.piece.of = sha256.Sum256(b.in)
	if have := z.old.get(b.piece.of, b.out); have != nil {
		b.out = have
	} else {
		out := sliceWriter{gunzip.AppendHeader(b.out[:0])}
		if b.flate == nil {
			b.flate, _ = flate.NewWriter(&out, z.level) // the level was checked when it was asked for
		}
		b.flate.Reset(&out)
		b.flate.Write(b.in) // a slice takes everything
		b.flate.Close()
		b.out = gunzip.AppendTrailer(out.b, b.in)
		gunzip.SetSize(b.out)
	}
	b.piece.sum, b.piece.size = sha256.Sum256(b.out), int64(len(b.out))
	b.ready <- struct{}{}
}

// write passes the blocks on in their order.
func (z *gzipWriter) write() {
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
func (z *gzipWriter) Close() error {
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
