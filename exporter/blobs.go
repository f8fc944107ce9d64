package exporter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"
)

// Layer is one layer of a finished image: one that steps made, which is in the snapshot store under ID, or one of a base
// image, which Image then describes.
type Layer struct {
	ID    string
	Image *ImageLayer
}

// ImageLayer is a layer that came from an image, as that image has it.
type ImageLayer struct {
	Blob   ocispec.Descriptor
	DiffID digest.Digest
	// Repository is where it came from, as "docker.io/library/debian"; "" for an image that is not of a registry.
	Repository string
	// Fetch makes sure that the blob is in the store.
	Fetch func(ctx context.Context) error
}

// LayerForm is how layers that steps made are written.
type LayerForm struct {
	Compression
	// Rewrite has times of files that are later than Epoch, in Unix seconds, written as Epoch.
	Rewrite bool
	Epoch   int64
	// Windows is set for layers of Windows images.
	Windows bool
}

func (f LayerForm) String() string {
	s := f.Compression.String()
	if f.Rewrite {
		s += ".epoch" + strconv.FormatInt(f.Epoch, 10)
	}
	if f.Windows {
		s += windowsForm
	}
	return s
}

// windowsForm ends the names of forms for Windows, whose tars do not have the files where the manifest has them.
const windowsForm = ".windows"

// uncompressed is the same form without compression.
func (f LayerForm) uncompressed() LayerForm {
	f.Compression = Uncompressed
	return f
}

// entries returns those of a tar as they are written in this form.
func (f LayerForm) entries(all iter.Seq2[*layer.Entry, layer.Body]) iter.Seq2[*layer.Entry, layer.Body] {
	if !f.Rewrite {
		return all
	}
	epoch := time.Unix(f.Epoch, 0)
	return func(yield func(*layer.Entry, layer.Body) bool) {
		for e, body := range all {
			if e.ModTime.After(epoch) {
				rewritten := *e
				rewritten.ModTime = epoch
				e = &rewritten
			}
			if !yield(e, body) {
				return
			}
		}
	}
}

// Compression is what layers are compressed with.
type Compression struct {
	// Type is "uncompressed", "gzip" or "zstd".
	Type string
	// Level is that of the compressor; -1 for its default.
	Level int
}

// Uncompressed leaves layers as they are.
var Uncompressed = Compression{Type: "uncompressed", Level: -1}

func (c Compression) String() string {
	if c.Level < 0 {
		return c.Type
	}
	return c.Type + "-" + strconv.Itoa(c.Level)
}

// ParseCompression reads the keys compression and compression-level of an output.
func ParseCompression(kind, level string) (Compression, error) {
	c := Compression{Type: kind, Level: -1}
	limit := 0
	switch kind {
	case "", "gzip":
		c.Type, limit = "gzip", 9
	case "uncompressed":
	case "zstd":
		limit = 22
	default:
		return c, fmt.Errorf("compression=%s is not supported: use uncompressed, gzip or zstd", kind)
	}
	if level == "" {
		return c, nil
	}
	n, err := strconv.Atoi(level)
	if err != nil || n < 0 || n > limit {
		return c, fmt.Errorf("compression-level=%s of %s is not between 0 and %d", level, c.Type, limit)
	}
	c.Level = n
	return c, nil
}

// blob is a layer's blob in the store.
type blob struct {
	desc   ocispec.Descriptor
	diffID digest.Digest
	pieces string // what formatPieces says of a gzip stream; "" for nothing
}

// Blobs makes blobs of layers and remembers which it made, so that a layer is written and compressed once.
// It must not be copied once it is used, and is safe for concurrent use.
type Blobs struct {
	Store     *cas.Store
	Snapshots *snapshot.Store

	working singleflight.Group // by layer and form
}

// Prepare makes the blob of a layer in the given form before an image is assembled from it, as while later steps run.
func (b *Blobs) Prepare(ctx context.Context, l Layer, f LayerForm) error {
	_, err := b.get(ctx, l, f)
	return err
}

// get returns the blob of a layer in the given form. Layers of images stay in the form that they came in.
func (b *Blobs) get(ctx context.Context, l Layer, f LayerForm) (blob, error) {
	if l.Image != nil {
		desc := ocispec.Descriptor{MediaType: ociMediaType(l.Image.Blob.MediaType), Digest: l.Image.Blob.Digest, Size: l.Image.Blob.Size}
		return blob{desc: desc, diffID: l.Image.DiffID}, nil
	}
	made, err, _ := b.working.Do(l.ID+" "+f.String(), func() (any, error) { return b.make(ctx, l.ID, f) })
	if err != nil {
		return blob{}, err
	}
	return made.(blob), nil
}

// make returns the blob of a layer that steps made: one that was made before, or a new one.
func (b *Blobs) make(ctx context.Context, id string, f LayerForm) (blob, error) {
	if have, ok := b.noted(id, f); ok {
		return have, nil
	}
	old, done := b.earlier(id, f)
	defer done()
	if plain, ok := b.noted(id, f.uncompressed()); ok {
		if f.Type == Uncompressed.Type {
			return plain, nil // another process has made it just now
		}
		return b.compress(ctx, plain.desc, f.Compression, old)
	}
	made, err := b.tar(ctx, id, f, old)
	if err != nil {
		return blob{}, fmt.Errorf("write the tar of layer %s: %w", id, err)
	}
	return made, b.Snapshots.SetNote(id, noteName(f), remember(made))
}

// noted returns the blob that was made of a layer in the given form before; false for none.
func (b *Blobs) noted(id string, f LayerForm) (blob, bool) {
	note, err := b.Snapshots.Note(id, noteName(f))
	if err != nil {
		return blob{}, false
	}
	return b.remembered(note)
}

// earlier returns the blocks of the blob that the step of this layer made when it last ran, or nil. done must be called.
func (b *Blobs) earlier(id string, f LayerForm) (old *pieces, done func()) {
	done = func() {}
	last := b.Snapshots.Earlier(id)
	if last == "" {
		return nil, done
	}
	have, ok := b.noted(last, f)
	if plain, found := b.noted(last, f.uncompressed()); !ok && found {
		have, ok = b.compressed(plain.desc, f.Compression)
	}
	if !ok || have.pieces == "" {
		return nil, done
	}
	path, err := b.Store.Path(have.desc.Digest)
	if err != nil {
		return nil, done
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, done
	}
	return parsePieces(have.pieces, file), func() { file.Close() }
}

func noteName(f LayerForm) string { return "blob." + f.String() }

// fetch makes sure that the blob of a layer is in the store.
func (b *Blobs) fetch(ctx context.Context, l Layer) error {
	if l.Image == nil || b.Store.Has(l.Image.Blob) {
		return nil
	}
	return l.Image.Fetch(ctx)
}

// Packing is the blob of a layer that is about to be committed: its tar is written to it.
type Packing struct {
	*making
	form LayerForm
	done func()
}

// Pack begins the blob of a layer that is about to be committed under an id. Close must be called.
func (b *Blobs) Pack(ctx context.Context, id string, f LayerForm) (*Packing, error) {
	old, done := b.earlier(id, f)
	m, err := b.begin(ctx, f.Compression, old)
	if err != nil {
		done()
		return nil, err
	}
	return &Packing{m, f, done}, nil
}

// Commit makes the blob, and returns the note of it for snapshot.Pending.Pack.
func (p *Packing) Commit() (note string, data []byte, err error) {
	made, err := p.commit()
	return noteName(p.form), remember(made), err
}

// Close gives the blob up, unless it is made.
func (p *Packing) Close() error {
	defer p.done()
	return p.making.Close()
}

// Packed returns what opens the blob that a layer became in any form, which is held from then on; false for none.
func (b *Blobs) Packed(id string) (open func() (io.ReadCloser, error), ok bool) {
	for _, path := range Notes(b.Snapshots.Path(id)) {
		if strings.HasSuffix(path, windowsForm) {
			continue
		}
		note, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if have, ok := b.remembered(note); ok {
			return func() (io.ReadCloser, error) { return b.Store.Open(have.desc) }, true
		}
	}
	return nil, false
}

// Check reads the blobs that a layer became, until ctx ends. One that is damaged is gone after that.
func (b *Blobs) Check(ctx context.Context, id string) {
	for _, path := range Notes(b.Snapshots.Path(id)) {
		note, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if have, ok := b.remembered(note); ok {
			if r, err := b.Store.Open(have.desc); err == nil {
				_, _ = io.Copy(io.Discard, ctxio.Reader(ctx, r))
				r.Close()
			}
		}
	}
}

// tar writes the layer's tar into a blob, through the compressor if that is asked for.
func (b *Blobs) tar(ctx context.Context, id string, f LayerForm, old *pieces) (blob, error) {
	m, err := b.Snapshots.Manifest(id)
	if err != nil {
		return blob{}, err
	}
	files, err := b.Snapshots.Files(id)
	if err != nil {
		return blob{}, err
	}
	p, err := b.begin(ctx, f.Compression, old)
	if err != nil {
		return blob{}, err
	}
	defer p.Close()
	write := layer.WriteTar
	if f.Windows {
		write = layer.WriteWindowsTar
	}
	if err := write(p, f.entries(files.Tar(m))); err != nil {
		return blob{}, err
	}
	return p.commit()
}

// making is a blob that is being made of the tar that is written to it.
type making struct {
	*blocks
	store     *cas.Writer
	out       io.WriteCloser // to store, by way of the compressor if there is one
	mediaType string
	diffID    hash.Hash // nil: that of the blob
}

func (b *Blobs) begin(ctx context.Context, c Compression, old *pieces) (*making, error) {
	w, err := b.Store.Create(ctx)
	if err != nil {
		return nil, err
	}
	m := &making{store: w, out: plainWriter{w}, mediaType: ocispec.MediaTypeImageLayer}
	var to io.Writer = m.out
	if c.Type != Uncompressed.Type {
		if m.out, m.mediaType, err = compressor(w, c, old); err != nil {
			w.Close()
			return nil, err
		}
		m.diffID = sha256.New()
		to = io.MultiWriter(m.diffID, m.out)
	}
	m.blocks = behind(ctxio.Writer(ctx, to))
	return m, nil
}

func (m *making) commit() (blob, error) {
	if err := errors.Join(m.blocks.end(true), m.out.Close()); err != nil {
		return blob{}, err
	}
	desc, err := m.store.Commit("", -1)
	if err != nil {
		return blob{}, err
	}
	desc.MediaType = m.mediaType
	if m.diffID == nil {
		return blob{desc: desc, diffID: desc.Digest}, nil
	}
	return blob{desc, digest.NewDigest(digest.SHA256, m.diffID), piecesOf(m.out)}, nil
}

// Close gives the blob up, unless it is made.
func (m *making) Close() error {
	if !m.blocks.ended {
		_ = m.blocks.end(false)
		_ = m.out.Close()
	}
	return m.store.Close()
}

// behind returns what writes to w in another goroutine: what is read next is read while w hashes and writes. Headers and most files are
// small, so they are gathered to blocks. end must be called.
func behind(w io.Writer) *blocks {
	b := &blocks{full: make(chan []byte), free: make(chan []byte, 2), done: make(chan error, 1), buf: make([]byte, 0, blockSize)}
	b.free <- make([]byte, 0, blockSize)
	go func() {
		var err error
		for p := range b.full {
			if err == nil {
				if _, err = w.Write(p); err != nil {
					failed := err
					b.failed.Store(&failed)
				}
			}
			b.free <- p[:0]
		}
		b.done <- err
	}()
	return b
}

// end waits until all is written, which if not all means what is in the last block as well, and returns the error of a Write.
func (b *blocks) end(all bool) error {
	b.ended = true
	if all {
		b.full <- b.buf
	}
	close(b.full)
	return <-b.done
}

// blocks gathers what is written and passes it on in blocks of blockSize.
type blocks struct {
	full, free chan []byte
	done       chan error
	buf        []byte
	failed     atomic.Pointer[error] // of the writer, which takes no more
	ended      bool
}

func (b *blocks) Write(p []byte) (int, error) {
	for n := 0; ; {
		k := copy(b.buf[len(b.buf):cap(b.buf)], p[n:])
		b.buf = b.buf[:len(b.buf)+k]
		if n += k; n == len(p) {
			return n, nil
		}
		if err := b.failed.Load(); err != nil {
			return n, *err
		}
		b.full <- b.buf
		b.buf = <-b.free
	}
}

// plainWriter is a compressor that does not compress.
type plainWriter struct{ io.Writer }

func (plainWriter) Close() error { return nil }

// A note of a blob is its media type, digest and size, its diff id, its pieces if there are any, and a checksum of these.
func remember(b blob) []byte {
	text := fmt.Sprintf("%s %s %d %s", b.desc.MediaType, b.desc.Digest, b.desc.Size, b.diffID)
	if b.pieces != "" {
		text += " " + b.pieces
	}
	return fmt.Appendf(nil, "%s %x\n", text, sha256.Sum256([]byte(text)))
}

// remembered reads what remember wrote; ok is false if it is damaged, or the blob is not in the store any more.
func (b *Blobs) remembered(note []byte) (have blob, ok bool) {
	have, ok = parseNote(note)
	return have, ok && b.Store.Has(have.desc)
}

// parseNote reads what remember wrote; ok is false if it is damaged.
func parseNote(note []byte) (have blob, ok bool) {
	f := strings.Fields(string(note))
	if len(f) != 5 && len(f) != 6 {
		return have, false
	}
	size, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return have, false
	}
	have = blob{desc: ocispec.Descriptor{MediaType: f[0], Digest: digest.Digest(f[1]), Size: size}, diffID: digest.Digest(f[3])}
	if len(f) == 6 {
		have.pieces = f[4]
	}
	return have, bytes.Equal(note, remember(have))
}

// ReadNote reads a note of a blob that was made of a layer, or of another blob: the blob, and the diff id of both. The error is
// that of reading the file, or says that it is damaged.
func ReadNote(path string) (desc ocispec.Descriptor, diffID digest.Digest, err error) {
	note, err := os.ReadFile(path)
	if err != nil {
		return desc, "", err
	}
	b, ok := parseNote(note)
	if !ok {
		return desc, "", errors.New("its checksum is wrong")
	}
	return b.desc, b.diffID, nil
}

// Notes returns the paths of the notes that are in a layer's directory.
func Notes(dir string) []string {
	names, _ := filepath.Glob(filepath.Join(dir, "blob.*")) // of this pattern there is no error
	return names
}

// blockSize is how much is read and written at a time.
const blockSize = 1 << 20

func (b *Blobs) memo(plain ocispec.Descriptor, c Compression) string {
	return filepath.Join(b.Store.Root(), rootdir.Compressed, plain.Digest.Encoded()+"."+c.String())
}

// compressed returns the blob that a tar of the store became when it was compressed; false for none.
func (b *Blobs) compressed(plain ocispec.Descriptor, c Compression) (blob, bool) {
	memo := b.memo(plain, c)
	note, err := os.ReadFile(memo)
	if err != nil {
		return blob{}, false
	}
	have, ok := b.remembered(note)
	if ok {
		lease.Used(memo, nil)
	}
	return have, ok
}

// compress returns the blob of a tar of the store in compressed form, which is made once, from old blocks where it has them.
func (b *Blobs) compress(ctx context.Context, plain ocispec.Descriptor, c Compression, old *pieces) (blob, error) {
	if have, ok := b.compressed(plain, c); ok {
		return have, nil
	}
	made, err := b.compressNow(ctx, plain, c, old)
	if err != nil {
		return blob{}, fmt.Errorf("compress layer %s: %w", plain.Digest, err)
	}
	memo := b.memo(plain, c)
	if err := os.MkdirAll(filepath.Dir(memo), 0o700); err != nil {
		return blob{}, err
	}
	return made, WriteFile(memo, func(w io.Writer) error {
		_, err := w.Write(remember(made))
		return err
	})
}

func (b *Blobs) compressNow(ctx context.Context, plain ocispec.Descriptor, c Compression, old *pieces) (blob, error) {
	r, err := b.Store.Open(plain)
	if err != nil {
		return blob{}, err
	}
	defer r.Close()
	w, err := b.Store.Create(ctx)
	if err != nil {
		return blob{}, err
	}
	defer w.Close()
	z, mediaType, err := compressor(ctxio.Writer(ctx, w), c, old)
	if err != nil {
		return blob{}, err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{z}, ctxio.Reader(ctx, r), make([]byte, blockSize))
	if err = errors.Join(err, z.Close()); err != nil {
		return blob{}, err
	}
	desc, err := w.Commit("", -1)
	desc.MediaType = mediaType
	return blob{desc, plain.Digest, piecesOf(z)}, err
}

// gzipLevel is the level where none is asked for. At 6 the result is 2 to 3 % larger than the standard library's at its
// default, which is what BuildKit takes, for Debian, Go and Node.js trees, and made three times as fast by each core. At 5 it is 3 to 5 %
// larger, and made hardly faster.
const gzipLevel = 6

func compressor(w io.Writer, c Compression, old *pieces) (io.WriteCloser, string, error) {
	switch c.Type {
	case "gzip":
		level := c.Level
		if level < 0 {
			level = gzipLevel
		}
		return newGzipWriter(w, level, old), ocispec.MediaTypeImageLayerGzip, nil
	case "zstd":
		level := zstd.SpeedDefault
		if c.Level >= 0 {
			level = zstd.EncoderLevelFromZstd(c.Level)
		}
		z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(level))
		return z, ocispec.MediaTypeImageLayerZstd, err
	}
	return nil, "", fmt.Errorf("BUG: no compression %q", c.Type)
}

// ociMediaType returns OCI's name of a layer's media type for Docker's. A layer that is not to be distributed becomes one that is, as with
// BuildKit: other tools would leave it out when they push the image, while the image has no address from which it could be had.
func ociMediaType(t string) string {
	switch t {
	case "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip":
		return ocispec.MediaTypeImageLayerGzip
	case "application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":
		return ocispec.MediaTypeImageLayerZstd
	case "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar":
		return ocispec.MediaTypeImageLayer
	}
	return t
}

// Docker's media types: docker image manifest version 2, schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
)

// dockerMediaType returns Docker's name of a layer's media type for OCI's.
func dockerMediaType(t string) (string, error) {
	switch t {
	case ocispec.MediaTypeImageLayerGzip:
		return "application/vnd.docker.image.rootfs.diff.tar.gzip", nil
	case ocispec.MediaTypeImageLayerZstd:
		return "application/vnd.docker.image.rootfs.diff.tar.zstd", nil // containerd's name; Docker's specification has none
	case ocispec.MediaTypeImageLayer:
		return "application/vnd.docker.image.rootfs.diff.tar", nil
	}
	return "", fmt.Errorf("there is no Docker media type for %s: leave out oci-mediatypes=false", t)
}
