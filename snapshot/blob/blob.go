// Package blob makes the blobs of layers: their tars, perhaps compressed, in the image store. It remembers in a layer's directory which
// blobs the layer became, and does not know where the layer's files come from.
package blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/rootdir"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob is a layer's blob in the image store.
type Blob struct {
	Desc   ocispec.Descriptor
	DiffID digest.Digest

	pieces string // what formatPieces says of a gzip stream; "" for nothing
}

// Note returns what Find reads in a layer's directory, under NoteName.
func (b Blob) Note() []byte { return remember(b) }

// Store makes blobs in an image store, and finds them again. It is safe for concurrent use.
type Store struct{ CAS *cas.Store }

// Job returns the same store for one of several jobs: see cas.Store.Job.
func (s Store) Job() Store { return Store{s.CAS.Job()} }

// Find returns the blob that a layer became in an encoding, by the note in the layer's directory, if it is in the image store still and of
// the bytes that this version of kiln makes. It is held from then on, as package cas says.
func (s Store) Find(dir string, f Encoding) (Blob, bool) {
	note, err := os.ReadFile(filepath.Join(dir, NoteName(f)))
	if err != nil {
		return Blob{}, false
	}
	return s.remembered(note)
}

// Any is Find for any encoding of which the files can be made.
func (s Store) Any(dir string) (Blob, bool) {
	for _, path := range Notes(dir) {
		if strings.HasSuffix(path, windowsEncoding) {
			continue
		}
		if b, err := ReadNote(path); err == nil && s.CAS.Has(b.Desc) {
			return b, true
		}
	}
	return Blob{}, false
}

// DiffIDs returns the diff IDs of the tars that a layer became with the times that its files have.
func DiffIDs(dir string) []digest.Digest {
	var all []digest.Digest
	for _, path := range Notes(dir) {
		if strings.HasSuffix(path, windowsEncoding) || strings.Contains(filepath.Base(path), epochEncoding) {
			continue
		}
		if b, err := ReadNote(path); err == nil {
			all = append(all, b.DiffID)
		}
	}
	return all
}

// remembered reads what remember wrote; ok is false if it is damaged, or another version of kiln made the blob, or the blob is not in the
// image store any more.
func (s Store) remembered(note []byte) (have Blob, ok bool) {
	have, ok = parse(note)
	return have, ok && current(have) && s.CAS.Has(have.Desc)
}

// Open opens the tar of a blob, which is decompressed in another goroutine. Bytes that are not the blob's are an error of the last Read at
// the latest.
func (s Store) Open(b Blob) (io.ReadCloser, error) {
	packed, err := s.CAS.Open(b.Desc)
	if err != nil {
		return nil, err
	}
	plain, err := layer.UncompressAhead(packed, nil)
	if err != nil {
		packed.Close()
		return nil, err
	}
	return opened{plain, packed}, nil
}

type opened struct {
	io.ReadCloser
	packed io.Closer
}

func (o opened) Close() error { return errors.Join(o.ReadCloser.Close(), o.packed.Close()) }

// Check reads the blobs that a layer became. The image store removes those that are damaged.
func (s Store) Check(ctx context.Context, dir string) {
	for _, path := range Notes(dir) {
		b, err := ReadNote(path)
		if err != nil || !s.CAS.Has(b.Desc) {
			continue
		}
		if r, err := s.CAS.Open(b.Desc); err == nil {
			_, _ = io.Copy(io.Discard, ctxio.Reader(ctx, r))
			r.Close()
		}
	}
}

// Earlier has what a new blob may have in common with one that was made before.
type Earlier struct {
	pieces *pieces
	file   *os.File
}

// Earlier returns what the blob of a layer, whose directory is dir, had in an encoding; nil for nothing. Close must be called.
func (s Store) Earlier(dir string, f Encoding) *Earlier {
	have, ok := s.Find(dir, f)
	if plain, found := s.Find(dir, f.Plain()); !ok && found {
		have, ok = s.compressed(plain.Desc, f.Compression)
	}
	of := formatOf(have.Desc.MediaType)
	if !ok || of == nil {
		return nil
	}
	path, err := s.CAS.Path(have.Desc.Digest)
	if err != nil {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	return &Earlier{of.parsePieces(have.pieces, file), file}
}

// Close frees the descriptor.
func (e *Earlier) Close() {
	if e != nil {
		e.file.Close()
	}
}

func (e *Earlier) of() *pieces {
	if e == nil {
		return nil
	}
	return e.pieces
}

// Making is a blob that is being made of the tar that is written to it.
type Making struct {
	*Blocks
	store     *cas.Writer
	out       io.WriteCloser // to store, by way of the compressor if there is one
	mediaType string
	diffID    hash.Hash // nil: that of the blob
	old       *Earlier

	count func(n int64)
	end   func()
}

// Begin begins a blob, which takes blocks from an earlier one, unless that is nil. Its compression is reported at the vertex of ctx,
// under a name. Close must be called; it closes the earlier one as well.
func (s Store) Begin(ctx context.Context, name string, c Compression, old *Earlier) (*Making, error) {
	w, err := s.CAS.Create(ctx)
	if err != nil {
		old.Close()
		return nil, err
	}
	m := &Making{store: w, out: plainWriter{w}, mediaType: ocispec.MediaTypeImageLayer, old: old, count: func(int64) {}, end: func() {}}
	var to io.Writer = m.out
	if c.Type != Uncompressed.Type {
		if m.out, m.mediaType, err = compressor(w, c, old.of()); err != nil {
			w.Close()
			old.Close()
			return nil, err
		}
		m.count, m.end = events.From(ctx).Counting(name, events.Compressing, 0)
		m.diffID = sha256.New()
		to = io.MultiWriter(m.diffID, m.out)
	}
	m.Blocks = Behind(ctxio.Writer(ctx, to))
	return m, nil
}

// Write implements io.Writer.
func (m *Making) Write(p []byte) (int, error) {
	n, err := m.Blocks.Write(p)
	m.count(int64(n))
	return n, err
}

// Commit makes the blob of what was written. Without it Close leaves no blob.
func (m *Making) Commit() (Blob, error) {
	if err := errors.Join(m.Blocks.End(true), m.out.Close()); err != nil {
		return Blob{}, err
	}
	m.end()
	desc, err := m.store.Commit("", -1)
	if err != nil {
		return Blob{}, err
	}
	desc.MediaType = m.mediaType
	if m.diffID == nil {
		return Blob{Desc: desc, DiffID: desc.Digest}, nil
	}
	return Blob{desc, digest.NewDigest(digest.SHA256, m.diffID), piecesOf(m.out)}, nil
}

// Close gives the blob up, unless it is made.
func (m *Making) Close() error {
	defer m.old.Close()
	if !m.ended {
		_ = m.End(false)
		_ = m.out.Close()
	}
	return m.store.Close()
}

// counter is a reader that counts what is read.
type counter struct {
	io.Reader
	count func(n int64)
}

func (c counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.count(int64(n))
	return n, err
}

// Compress returns the blob of a tar of the image store in compressed form, which is made once, from blocks of an earlier blob where it has
// them.
func (s Store) Compress(ctx context.Context, plain ocispec.Descriptor, c Compression, old *Earlier) (Blob, error) {
	if have, ok := s.compressed(plain, c); ok {
		return have, nil
	}
	made, err := s.compress(ctx, plain, c, old)
	if err != nil {
		return Blob{}, fmt.Errorf("compress layer %s: %w", plain.Digest, err)
	}
	return made, writeMemo(s.memo(plain, c), made)
}

func writeMemo(path string, b Blob) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return atomicfile.WriteAt(dir, filepath.Base(path), func(w io.Writer) error {
		_, err := w.Write(b.Note())
		return err
	})
}

// memo returns where it is noted which blob a tar became when it was compressed.
func (s Store) memo(plain ocispec.Descriptor, c Compression) string {
	return filepath.Join(s.CAS.Root(), rootdir.Compressed, plain.Digest.Encoded()+"."+c.String())
}

// compressed returns the blob that a tar of the image store became when it was compressed; false for none.
func (s Store) compressed(plain ocispec.Descriptor, c Compression) (Blob, bool) {
	memo := s.memo(plain, c)
	note, err := os.ReadFile(memo)
	if err != nil {
		return Blob{}, false
	}
	have, ok := s.remembered(note)
	if ok {
		lease.Used(memo, nil)
	}
	return have, ok
}

func (s Store) compress(ctx context.Context, plain ocispec.Descriptor, c Compression, old *Earlier) (Blob, error) {
	r, err := s.CAS.Open(plain)
	if err != nil {
		return Blob{}, err
	}
	defer r.Close()
	w, err := s.CAS.Create(ctx)
	if err != nil {
		return Blob{}, err
	}
	defer w.Close()
	z, mediaType, err := compressor(ctxio.Writer(ctx, w), c, old.of())
	if err != nil {
		return Blob{}, err
	}
	count, end := events.From(ctx).Counting(plain.Digest.String(), events.Compressing, plain.Size)
	_, err = io.CopyBuffer(struct{ io.Writer }{z}, counter{ctxio.Reader(ctx, r), count}, make([]byte, blockSize))
	if err = errors.Join(err, z.Close()); err != nil {
		return Blob{}, err
	}
	end()
	desc, err := w.Commit("", -1)
	desc.MediaType = mediaType
	return Blob{desc, plain.Digest, piecesOf(z)}, err
}
