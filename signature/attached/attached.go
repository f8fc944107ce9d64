// Package attached finds signatures beside an image, and puts them there, where cosign does: in the manifest of a tag that is named after
// the image's digest, and in manifests that have the image as their subject. What it finds is not verified.
package attached

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/signature"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxCandidates bounds how many signatures of one image are read.
const maxCandidates = 100

// Tag returns the tag of the manifest with the signatures of an image in the form signature.Simple.
func Tag(d digest.Digest) string { return registry.ReferrersTag(d) + ".sig" }

// bundleTypes begins the types of bundles of all versions.
const bundleTypes = "application/vnd.dev.sigstore.bundle"

// Source is where an image and its signatures are.
type Source interface {
	// Tagged returns the manifest of a tag; nil if there is none.
	Tagged(ctx context.Context, tag string) ([]byte, error)
	// Referrers returns what is said to have d as its subject. An entry need not say what it is.
	Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error)
	// Manifest returns the manifest of a descriptor, verified.
	Manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// Blob returns a blob of at most limit bytes, verified.
	Blob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error)
}

// Find returns what may be signatures of an image. What is there and cannot be read is a Candidate with an error; the error that Find
// returns is that of the source, or that of a nil one.
func Find(ctx context.Context, src Source, d digest.Digest) ([]signature.Candidate, error) {
	if src == nil {
		return nil, errors.New("the image has no name in a registry")
	}
	f := finder{ctx: ctx, src: src, image: d}
	if err := f.tagged(); err != nil {
		return nil, err
	}
	if err := f.referrers(); err != nil {
		return nil, err
	}
	return f.found, nil
}

type finder struct {
	ctx   context.Context
	src   Source
	image digest.Digest
	found []signature.Candidate
}

// full reports whether no further signatures are read, and says so in their place.
func (f *finder) full() bool {
	switch n := len(f.found); {
	case n < maxCandidates:
		return false
	case n == maxCandidates:
		f.found = append(f.found, signature.Candidate{Err: fmt.Errorf("only %d signatures of an image are read", maxCandidates)})
	}
	return true
}

// tagged adds the signatures of the tag.
func (f *finder) tagged() error {
	tag := Tag(f.image)
	data, err := f.src.Tagged(f.ctx, tag)
	if data == nil || err != nil {
		return err
	}
	m, err := parse(data)
	if err != nil {
		f.found = append(f.found, signature.Candidate{Form: signature.Simple, From: "signatures of the tag", Err: err})
		return nil
	}
	for i, l := range m.Layers {
		if f.full() {
			return nil
		}
		c := signature.Candidate{Form: signature.Simple, From: fmt.Sprintf("signature %d of the tag", i+1)}
		if l.MediaType != signature.SimpleMediaType {
			c.Err = fmt.Errorf("its type is %.100q, and not %q", l.MediaType, signature.SimpleMediaType)
		} else if c.Signature, c.Err = signature.Signature(l.Annotations[signature.SignatureAnnotation]); c.Err == nil {
			if err := f.blob(l, signature.MaxPayload, &c.Payload, &c.Err); err != nil {
				return err
			}
		}
		f.found = append(f.found, c)
	}
	return nil
}

// parse reads a manifest with signatures. Old ones do not say what they are.
func parse(data []byte) (*ocispec.Manifest, error) {
	doc, err := image.Parse(data, "")
	if err != nil {
		doc, err = image.Parse(data, ocispec.MediaTypeImageManifest)
	}
	switch {
	case err != nil:
		return nil, err
	case doc.Manifest == nil:
		return nil, errors.New("it is an index, and not a manifest with signatures")
	}
	return doc.Manifest, nil
}

// referrers adds the bundles that refer to the image.
func (f *finder) referrers() error {
	list, err := f.src.Referrers(f.ctx, f.image)
	if err != nil {
		return err
	}
	seen := map[digest.Digest]bool{}
	for _, d := range list {
		if seen[d.Digest] || !cas.IsManifest(d.MediaType) || !mayBeBundle(d) {
			continue
		}
		seen[d.Digest] = true
		if f.full() {
			return nil
		}
		c := signature.Candidate{Form: signature.Bundled, From: "bundle " + d.Digest.Encoded()[:12]}
		switch err := f.bundle(d, &c); {
		case errors.Is(err, errOtherStatement):
		case err != nil:
			return err
		default:
			f.found = append(f.found, c)
		}
	}
	return nil
}

// errOtherStatement is a bundle that says of itself that it is something else than a signature, such as an attestation.
var errOtherStatement = errors.New("it is not a signature")

// other reports whether annotations say that a bundle is something else than a signature. Whoever changes them could as well remove it.
func other(annotations map[string]string) bool {
	predicate := annotations[predicateAnnotation]
	return predicate != "" && predicate != signature.PredicateType
}

// mayBeBundle reports whether an entry of a list of referrers may be a bundle with a signature. Some registries take the type of the config
// for that of an artifact.
func mayBeBundle(d ocispec.Descriptor) bool {
	if other(d.Annotations) {
		return false
	}
	return d.ArtifactType == "" || d.ArtifactType == ocispec.MediaTypeEmptyJSON || strings.HasPrefix(d.ArtifactType, bundleTypes)
}

// bundle reads the bundle of a manifest. The error is that of the source, or errOtherStatement.
func (f *finder) bundle(d ocispec.Descriptor, c *signature.Candidate) error {
	if d.Size > cas.MaxManifest {
		c.Err = image.ErrTooLarge
		return nil
	}
	data, err := f.src.Manifest(f.ctx, d)
	if known(err) {
		c.Err = err
		return nil
	}
	if err != nil {
		return err
	}
	doc, err := image.Parse(data, d.MediaType)
	switch {
	case err != nil:
		c.Err = err
	case doc.Manifest.Subject == nil || doc.Manifest.Subject.Digest != f.image:
		c.Err = errors.New("it is listed as a signature of the image, and its subject is another")
	case other(doc.Manifest.Annotations):
		return errOtherStatement
	case len(doc.Manifest.Layers) != 1:
		c.Err = fmt.Errorf("it has %d layers, and not one with a bundle", len(doc.Manifest.Layers))
	case doc.Manifest.Layers[0].MediaType != signature.BundleMediaType:
		c.Err = fmt.Errorf("its type is %.100q, and not %q", doc.Manifest.Layers[0].MediaType, signature.BundleMediaType)
	default:
		return f.blob(doc.Manifest.Layers[0], signature.MaxBundle, &c.Bundle, &c.Err)
	}
	return nil
}

// blob reads a blob, or sets problem to why it is not what it is said to be.
func (f *finder) blob(d ocispec.Descriptor, limit int64, into *[]byte, problem *error) (err error) {
	if d.Size > limit {
		*problem = fmt.Errorf("it has %d bytes, and more than %d are not read", d.Size, limit)
		return nil
	}
	if *into, err = f.src.Blob(f.ctx, d, limit); known(err) {
		*problem, err = err, nil
	}
	return err
}

// known reports whether an error means that something is not there, or not what was promised, and not that nobody knows.
func known(err error) bool {
	e, ok := errors.AsType[*registry.Error](err)
	_, mismatch := errors.AsType[*cas.MismatchError](err)
	return mismatch || ok && (e.Kind == registry.NotFound || e.Kind == registry.Invalid)
}

// Repository is a repository of a registry.
type Repository struct {
	Client *registry.Client
	Name   imagename.Name
}

// at returns the name of something in the repository.
func (r Repository) at(tag string, d digest.Digest) string {
	return imagename.Name{Registry: r.Name.Registry, Repository: r.Name.Repository, Tag: tag, Digest: d}.String()
}

// Tagged implements Source.
func (r Repository) Tagged(ctx context.Context, tag string) ([]byte, error) {
	data, err := r.Client.Manifest(ctx, r.at(tag, ""))
	if e, ok := errors.AsType[*registry.Error](err); ok && e.Kind == registry.NotFound {
		return nil, nil
	}
	return data, err
}

// Referrers implements Source.
func (r Repository) Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	return r.Client.Referrers(ctx, r.at("", d), d)
}

// Manifest implements Source.
func (r Repository) Manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return r.Client.Manifest(ctx, r.at("", desc.Digest))
}

// Blob implements Source.
func (r Repository) Blob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	rc, err := r.Client.Fetch(ctx, r.at("", desc.Digest), desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return cas.ReadAll(rc, desc, limit)
}
