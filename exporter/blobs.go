package exporter

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/snapshot"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
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

// Compression is the form of the layers that steps made.
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
}

// Blobs makes blobs of layers and remembers which it made, so that a layer is written and compressed once.
// It must not be copied once it is used, and is safe for concurrent use.
type Blobs struct {
	Store     *cas.Store
	Snapshots *snapshot.Store

	working singleflight.Group // by layer and form
}

// Prepare makes the blob of a layer in the given form before an image is assembled from it, as while later steps run.
func (b *Blobs) Prepare(ctx context.Context, l Layer, c Compression) error {
	_, err := b.get(ctx, l, c)
	return err
}

// get returns the blob of a layer in the given form. Layers of images stay in the form that they came in.
func (b *Blobs) get(ctx context.Context, l Layer, c Compression) (blob, error) {
	if l.Image != nil {
		desc := ocispec.Descriptor{MediaType: ociMediaType(l.Image.Blob.MediaType), Digest: l.Image.Blob.Digest, Size: l.Image.Blob.Size}
		return blob{desc, l.Image.DiffID}, nil
	}
	made, err, _ := b.working.Do(l.ID+" "+c.String(), func() (any, error) { return b.make(ctx, l.ID, c) })
	if err != nil {
		return blob{}, err
	}
	return made.(blob), nil
}

// make returns the blob of a layer that steps made: one that was made before, or a new one.
func (b *Blobs) make(ctx context.Context, id string, c Compression) (blob, error) {
	if have, ok := b.noted(id, c); ok {
		return have, nil
	}
	if plain, ok := b.noted(id, Uncompressed); ok {
		desc, err := b.compress(ctx, plain.desc, c)
		return blob{desc, plain.diffID}, err
	}
	made, err := b.tar(ctx, id, c)
	if err != nil {
		return blob{}, fmt.Errorf("write the tar of layer %s: %w", id, err)
	}
	return made, b.Snapshots.SetNote(id, noteName(c), remember(made))
}

// noted returns the blob that was made of a layer in the given form before; false for none.
func (b *Blobs) noted(id string, c Compression) (blob, bool) {
	note, err := b.Snapshots.Note(id, noteName(c))
	if err != nil {
		return blob{}, false
	}
	return b.remembered(note)
}

func noteName(c Compression) string { return "blob." + c.String() }

// fetch makes sure that the blob of a layer is in the store.
func (b *Blobs) fetch(ctx context.Context, l Layer) error {
	if l.Image == nil || b.Store.Has(l.Image.Blob) {
		return nil
	}
	return l.Image.Fetch(ctx)
}

// tar writes the layer's tar into a blob, through the compressor if that is asked for.
func (b *Blobs) tar(ctx context.Context, id string, c Compression) (blob, error) {
	m, err := b.Snapshots.Manifest(id)
	if err != nil {
		return blob{}, err
	}
	tree, err := b.Snapshots.Tree([]string{id})
	if err != nil {
		return blob{}, err
	}
	w, err := b.Store.Create(ctx)
	if err != nil {
		return blob{}, err
	}
	defer w.Close()
	var out io.WriteCloser = plainWriter{w}
	mediaType := ocispec.MediaTypeImageLayer
	diffID := sha256.New()
	if c.Type != Uncompressed.Type {
		z, t, err := compressor(w, c)
		if err != nil {
			return blob{}, err
		}
		out, mediaType = z, t
	}
	var to io.Writer = out
	if c.Type != Uncompressed.Type {
		to = io.MultiWriter(diffID, out)
	}
	err = behind(ctxWriter{ctx, to}, func(w io.Writer) error { return layer.WriteTar(w, m.All(), tree.Open) })
	if err = errors.Join(err, out.Close()); err != nil {
		return blob{}, err
	}
	desc, err := w.Commit("", -1)
	if err != nil {
		return blob{}, err
	}
	desc.MediaType = mediaType
	if c.Type == Uncompressed.Type {
		return blob{desc, desc.Digest}, nil
	}
	return blob{desc, digest.NewDigest(digest.SHA256, diffID)}, nil
}

// behind has f write to w by way of another goroutine: what f reads next is read while w hashes and writes. Headers and most
// files are small, so they are gathered to blocks.
func behind(w io.Writer, f func(io.Writer) error) error {
	r, p := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, r, make([]byte, blockSize))
		r.CloseWithError(err)
		done <- err
	}()
	buf := bufio.NewWriterSize(p, blockSize)
	err := f(buf)
	if err == nil {
		err = buf.Flush()
	}
	p.CloseWithError(err) // nil ends what is copied
	if copied := <-done; err == nil {
		err = copied
	}
	return err
}

// plainWriter is a compressor that does not compress.
type plainWriter struct{ io.Writer }

func (plainWriter) Close() error { return nil }

// A note of a blob is its media type, digest and size, its diff id, and a checksum of these.
func remember(b blob) []byte {
	text := fmt.Sprintf("%s %s %d %s", b.desc.MediaType, b.desc.Digest, b.desc.Size, b.diffID)
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
	if len(f) != 5 || f[4] != fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(f[:4], " ")))) {
		return have, false
	}
	size, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return have, false
	}
	return blob{ocispec.Descriptor{MediaType: f[0], Digest: digest.Digest(f[1]), Size: size}, digest.Digest(f[3])}, true
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

// ctxWriter fails once its context has ended.
type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c ctxWriter) Write(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.w.Write(p)
}

// blockSize is how much each core compresses at a time: it is part of the result's bytes, so it must not depend on the
// machine. Blocks this long cost less than 1 % in size.
const blockSize = 1 << 20

// compress returns the blob of a tar of the store in compressed form, which is made once.
func (b *Blobs) compress(ctx context.Context, plain ocispec.Descriptor, c Compression) (ocispec.Descriptor, error) {
	memo := filepath.Join(b.Store.Root(), "compressed", plain.Digest.Encoded()+"."+c.String())
	if note, err := os.ReadFile(memo); err == nil {
		if have, ok := b.remembered(note); ok {
			lease.Used(memo, nil)
			return have.desc, nil
		}
	}
	desc, err := b.compressNow(ctx, plain, c)
	if err != nil {
		return desc, fmt.Errorf("compress layer %s: %w", plain.Digest, err)
	}
	if err := os.MkdirAll(filepath.Dir(memo), 0o700); err != nil {
		return desc, err
	}
	return desc, WriteFile(memo, func(w io.Writer) error {
		_, err := w.Write(remember(blob{desc, plain.Digest}))
		return err
	})
}

func (b *Blobs) compressNow(ctx context.Context, plain ocispec.Descriptor, c Compression) (ocispec.Descriptor, error) {
	r, err := b.Store.Open(plain)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer r.Close()
	w, err := b.Store.Create(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer w.Close()
	z, mediaType, err := compressor(ctxWriter{ctx, w}, c)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{z}, struct{ io.Reader }{r}, make([]byte, blockSize))
	if err = errors.Join(err, z.Close()); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := w.Commit("", -1)
	desc.MediaType = mediaType
	return desc, err
}

// gzipLevel is the level where none is asked for. At 6 the result is 2.6 % larger than the standard library's at its
// default, which is what BuildKit takes, and made three times as fast by each core; at 5 it is 3.9 % larger.
const gzipLevel = 6

func compressor(w io.Writer, c Compression) (io.WriteCloser, string, error) {
	switch c.Type {
	case "gzip":
		level := c.Level
		if level < 0 {
			level = gzipLevel
		}
		z, err := pgzip.NewWriterLevel(w, level)
		if err != nil {
			return nil, "", err
		}
		return z, ocispec.MediaTypeImageLayerGzip, z.SetConcurrency(blockSize, max(2, runtime.GOMAXPROCS(0)))
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

// ociMediaType returns OCI's name of a layer's media type for Docker's.
func ociMediaType(t string) string {
	switch t {
	case "application/vnd.docker.image.rootfs.diff.tar.gzip":
		return ocispec.MediaTypeImageLayerGzip
	case "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return ocispec.MediaTypeImageLayerZstd
	case "application/vnd.docker.image.rootfs.diff.tar":
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
	case ocispec.MediaTypeImageLayer:
		return "application/vnd.docker.image.rootfs.diff.tar", nil
	}
	return "", fmt.Errorf("there is no Docker media type for %s: leave out oci-mediatypes=false", t)
}
