package records

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	control "github.com/moby/buildkit/api/services/control"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/internal/cas"
)

// A file of a record is the bytes of its blobs, one after the other; an index; the length of the index as 64 bits, little-endian; and
// magic.

const magic = "kiln record 1\n"

const (
	// maxIndex bounds the index of a file, in bytes.
	maxIndex = 16 << 20
	// maxAttrs bounds the attributes of a request in a record, in bytes. What is more is left out.
	maxAttrs = 1 << 20
	// maxBlob and maxBlobs bound what a record keeps of an image, in bytes: its manifests, configuration and attestations.
	maxBlob  = 16 << 20
	maxBlobs = 64 << 20
)

// blob is where the bytes of a blob are in a file.
type blob struct {
	MediaType string `json:"mediaType"`
	Offset    int64  `json:"offset"`
	Size      int64  `json:"size"`
}

// index is the index of a file.
type index struct {
	// Record is a control.BuildHistoryRecord, encoded.
	Record []byte                 `json:"record"`
	Blobs  map[digest.Digest]blob `json:"blobs"`
}

// file writes the file of a record.
type file struct {
	w      io.Writer
	size   int64
	sum    hash.Hash
	blobs  map[digest.Digest]blob
	images int64 // how much of maxBlobs is used
}

func newFile(w io.Writer) *file { return &file{w: w, blobs: map[digest.Digest]blob{}} }

// Write implements io.Writer for what writes a blob.
func (f *file) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	f.size += int64(n)
	if f.sum != nil {
		f.sum.Write(p[:n])
	}
	return n, err
}

// blob adds what write writes. A blob that is there already is there twice, and one of both is found.
func (f *file) blob(mediaType string, write func(io.Writer) error) (*control.Descriptor, error) {
	start := f.size
	f.sum = sha256.New()
	if err := write(f); err != nil {
		return nil, err
	}
	d := digest.NewDigest(digest.SHA256, f.sum)
	f.sum = nil
	f.blobs[d] = blob{mediaType, start, f.size - start}
	return &control.Descriptor{MediaType: mediaType, Digest: d.String(), Size: f.size - start}, nil
}

// image adds the blobs of an image that say something of it: all but its layers.
func (f *file) image(desc ocispec.Descriptor, open func(ocispec.Descriptor) (io.ReadCloser, error)) error {
	if _, ok := f.blobs[desc.Digest]; ok || desc.Size > maxBlob || f.images+desc.Size > maxBlobs {
		return nil
	}
	r, err := open(desc)
	if err != nil {
		return nil // it has been removed meanwhile, or never was here
	}
	defer r.Close()
	data, err := cas.ReadAll(r, desc, maxBlob)
	if err != nil {
		return nil
	}
	f.images += desc.Size
	if _, err := f.blob(desc.MediaType, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}); err != nil {
		return err
	}
	var of struct {
		Manifests []ocispec.Descriptor `json:"manifests"`
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
	}
	if !cas.IsIndex(desc.MediaType) && !cas.IsManifest(desc.MediaType) || json.Unmarshal(data, &of) != nil {
		return nil
	}
	next := of.Manifests
	if of.Config != nil {
		next = append(next, *of.Config)
	}
	for _, l := range of.Layers {
		if l.MediaType == StatementType {
			next = append(next, l)
		}
	}
	for _, d := range next {
		if err := f.image(d, open); err != nil {
			return err
		}
	}
	return nil
}

// StatementType is the media type of a statement about an image.
const StatementType = "application/vnd.in-toto+json"

// end adds the record.
func (f *file) end(rec *control.BuildHistoryRecord) error {
	size := 0
	for k, v := range rec.FrontendAttrs {
		size += len(k) + len(v)
	}
	if size > maxAttrs {
		rec.FrontendAttrs = nil
	}
	encoded, err := rec.MarshalVT()
	if err != nil {
		return err
	}
	data, err := json.Marshal(index{encoded, f.blobs})
	if err != nil {
		return err
	}
	data = binary.LittleEndian.AppendUint64(data, uint64(len(data)))
	_, err = f.Write(append(data, magic...))
	return err
}

// errDamaged is the error of a file that is not that of a record.
var errDamaged = errors.New("the file is damaged")

// readFile reads the record and the index of a file.
func readFile(f *os.File) (*control.BuildHistoryRecord, map[digest.Digest]blob, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	const tail = int64(8 + len(magic))
	end := make([]byte, tail)
	if info.Size() < tail {
		return nil, nil, errDamaged
	}
	if _, err := f.ReadAt(end, info.Size()-tail); err != nil {
		return nil, nil, err
	}
	n := binary.LittleEndian.Uint64(end)
	if string(end[8:]) != magic || n > maxIndex || int64(n) > info.Size()-tail {
		return nil, nil, errDamaged
	}
	data := make([]byte, n)
	if _, err := f.ReadAt(data, info.Size()-tail-int64(n)); err != nil {
		return nil, nil, err
	}
	var x index
	if err := json.Unmarshal(data, &x); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	for _, b := range x.Blobs {
		if b.Offset < 0 || b.Size < 0 || b.Offset > info.Size() || b.Size > info.Size()-b.Offset {
			return nil, nil, errDamaged
		}
	}
	rec := &control.BuildHistoryRecord{}
	if err := rec.UnmarshalVT(x.Record); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return rec, x.Blobs, nil
}
