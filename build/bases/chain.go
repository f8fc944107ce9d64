package bases

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry/image"
)

// Chain leads from what the name of an image stands for to what is attested of the image, and to the signature of that.
type Chain struct {
	// Root is the index, and Image the manifest of the image for the platform.
	Root, Image digest.Digest
	// Attestation is the manifest of the statements, and Signatures are those that sign it: one at most. "" and nil for none.
	Attestation digest.Digest
	Signatures  []digest.Digest
	// Blobs are the documents of the chain but for Image, what signatures consist of, and the statements that were asked for.
	Blobs []Document
}

// Document is a document and its bytes.
type Document struct {
	ocispec.Descriptor
	Data []byte
}

// maxChain bounds the documents of a chain together, in bytes: they are one message for the client.
const maxChain = 8 << 20

// The artifact types of signatures: a bundle of sigstore is preferred.
const (
	typeBundle = "application/vnd.dev.sigstore.bundle.v0.3+json"
	typeCosign = "application/vnd.dev.cosign.artifact.sig.v1+json"
)

// Chain looks up what is attested of an image of a registry, with the statements of some predicate types; nil for an image without an
// index.
func (b *Bases) Chain(ctx context.Context, op llb.Image, predicates []string) (*Chain, error) {
	found, err := b.get(ctx, op)
	if err != nil {
		return nil, err
	}
	if op.Store != "" || op.Layout != "" || !cas.IsIndex(found.image.Target.MediaType) {
		return nil, nil
	}
	ref, err := imagename.Parse(found.ref)
	if err != nil {
		return nil, err
	}
	ref.Tag = ""
	f := &chainFinder{b: b, ctx: ctx, ref: ref, chain: &Chain{Root: found.image.Target.Digest, Image: found.image.Desc.Digest}}
	if err := f.find(found.image.Target, predicates); err != nil {
		return nil, fmt.Errorf("look for what is attested of %s: %w", found.ref, err)
	}
	return f.chain, nil
}

// chainFinder finds a chain.
type chainFinder struct {
	b     *Bases
	ctx   context.Context
	ref   imagename.Name
	chain *Chain
	size  int64
}

func (f *chainFinder) find(root ocispec.Descriptor, predicates []string) error {
	top, err := f.document(root)
	if err != nil || top.Index == nil {
		return err
	}
	i := slices.IndexFunc(top.Index.Manifests, func(d ocispec.Descriptor) bool {
		of, ok := attestation.Subject(d)
		return ok && of == f.chain.Image
	})
	if i < 0 {
		return nil
	}
	f.chain.Attestation = top.Index.Manifests[i].Digest
	statements, err := f.document(top.Index.Manifests[i])
	if err != nil {
		return err
	}
	if err := f.signature(); err != nil || statements.Manifest == nil {
		return err
	}
	for _, l := range statements.Manifest.Layers {
		if slices.Contains(predicates, l.Annotations[attestation.PredicateAnnotation]) {
			if err := f.blob(l); err != nil {
				return err
			}
		}
	}
	return nil
}

// signature adds the signature of the statements, if there is one.
func (f *chainFinder) signature() error {
	all, err := f.b.client.Referrers(f.ctx, f.at(f.chain.Attestation), f.chain.Attestation)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(d ocispec.Descriptor) bool { return d.ArtifactType != typeBundle && d.ArtifactType != typeCosign })
	if len(all) == 0 {
		return nil
	}
	// The name of a bundle's type is the greater one.
	slices.SortStableFunc(all, func(x, y ocispec.Descriptor) int { return -cmp.Compare(x.ArtifactType, y.ArtifactType) })
	doc, err := f.document(all[0])
	if err != nil || doc.Manifest == nil {
		return err
	}
	f.chain.Signatures = []digest.Digest{all[0].Digest}
	for _, l := range doc.Manifest.Layers {
		if err := f.blob(l); err != nil {
			return err
		}
	}
	return nil
}

func (f *chainFinder) at(d digest.Digest) string {
	ref := f.ref
	ref.Digest = d
	return ref.String()
}

// document adds a manifest or an index.
func (f *chainFinder) document(d ocispec.Descriptor) (*image.Document, error) {
	desc, data, err := f.b.client.Document(f.ctx, f.at(d.Digest), f.b.store)
	if err != nil {
		return nil, err
	}
	if err := f.add(desc, data); err != nil {
		return nil, err
	}
	return image.Parse(data, desc.MediaType)
}

// blob adds a blob.
func (f *chainFinder) blob(d ocispec.Descriptor) error {
	if f.size+d.Size > maxChain {
		return f.add(d, nil)
	}
	rc, err := f.b.client.Fetch(f.ctx, f.at(d.Digest), d)
	if err != nil {
		return err
	}
	defer rc.Close()
	data, err := cas.ReadAll(rc, d, maxChain)
	if err != nil {
		return err
	}
	return f.add(d, data)
}

func (f *chainFinder) add(d ocispec.Descriptor, data []byte) error {
	if f.size += d.Size; f.size > maxChain {
		return fmt.Errorf("it is larger than the %d MiB that are read of it", maxChain>>20)
	}
	f.chain.Blobs = append(f.chain.Blobs, Document{d, data})
	return nil
}
