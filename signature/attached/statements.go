package attached

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The index that is signed names the manifests of its attestations by digest, so they are signed with it. But verifiers other than kiln
// look for a bundle of each statement: so they are signed by themselves as well, with the index as one more subject.

// maxStatement bounds a statement that is signed by itself, in bytes, and maxStatements how many of an image are. Others are signed
// with the index alone.
const (
	maxStatement  = 16 << 20
	maxStatements = 32
)

// statement is one of in-toto.
type statement struct {
	predicateType string
	text          []byte
}

// attested returns the statements of an index, in its order, each once.
func attested(desc ocispec.Descriptor, blobs registry.Blobs) (all []statement, err error) {
	top, err := document(desc, blobs)
	if err != nil || top.Index == nil {
		return nil, err
	}
	for _, entry := range top.Index.Manifests {
		if _, ok := attestation.Subject(entry); !ok {
			continue
		}
		doc, err := document(entry, blobs)
		if err != nil {
			return nil, err
		}
		if doc.Manifest == nil {
			continue
		}
		for _, l := range doc.Manifest.Layers {
			if l.MediaType != attestation.MediaType || l.Size > maxStatement || len(all) == maxStatements {
				continue
			}
			s, err := about(desc, l, blobs)
			if err != nil {
				return nil, err
			}
			if !slices.ContainsFunc(all, func(other statement) bool { return bytes.Equal(other.text, s.text) }) {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// about returns the statement of a layer, with an index as its last subject.
func about(index, l ocispec.Descriptor, blobs registry.Blobs) (statement, error) {
	data, err := read(l, blobs, maxStatement)
	if err != nil {
		return statement{}, err
	}
	s, err := attestation.ParseStatement(data)
	if err != nil {
		return statement{}, fmt.Errorf("read the attestation %s: %w", l.Digest, err)
	}
	s.Subject = append(s.Subject, attestation.Resource{Digest: attestation.Digests(index.Digest)})
	text, err := json.Marshal(s)
	if err != nil {
		return statement{}, fmt.Errorf("encode an attestation: %w", err)
	}
	return statement{s.PredicateType, text}, nil
}

func document(desc ocispec.Descriptor, blobs registry.Blobs) (*image.Document, error) {
	data, err := read(desc, blobs, cas.MaxManifest)
	if err != nil {
		return nil, err
	}
	return image.Parse(data, desc.MediaType)
}

func read(desc ocispec.Descriptor, blobs registry.Blobs, limit int64) ([]byte, error) {
	rc, err := blobs.Open(desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return cas.ReadAll(rc, desc, limit)
}

// remoteBlobs are the manifests and blobs of a repository.
type remoteBlobs struct {
	ctx context.Context
	Repository
}

// Open implements registry.Blobs.
func (b remoteBlobs) Open(desc ocispec.Descriptor) (io.ReadCloser, error) {
	if cas.IsIndex(desc.MediaType) || cas.IsManifest(desc.MediaType) {
		data, err := b.Manifest(b.ctx, desc)
		return io.NopCloser(bytes.NewReader(data)), err
	}
	return b.Client.Fetch(b.ctx, b.at("", desc.Digest), desc)
}
