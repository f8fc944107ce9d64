package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/registry/layout"
	"github.com/kilnbuild/kiln/signature"
	"github.com/kilnbuild/kiln/signature/attached"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Attested is what an image, or an index of images, has of attestations. Close must be called.
type Attested struct {
	// Name is where it was found, and Digest that of the manifest or index.
	Name   string
	Digest digest.Digest
	// Images are its images, for one platform each.
	Images []AttestedImage

	source attestedSource
	// signatures is where its signatures are; nil if nobody knows.
	signatures attached.Source
	close      func() error
}

// AttestedImage is an image for one platform, with its attestations.
type AttestedImage struct {
	Digest digest.Digest
	// Platform is as an index has it: "linux/amd64"; "" for an image without an index.
	Platform string
	// Attestations are statements that were not read yet.
	Attestations []StoredAttestation
	// Entries are those of the index that have this digest: several if the index says that it is for several platforms.
	Entries []ocispec.Descriptor
}

// StoredAttestation is a statement where it is kept.
type StoredAttestation struct {
	// PredicateType is what the manifest says; "" if it says nothing. A statement that is read may say something else.
	PredicateType string
	Desc          ocispec.Descriptor
}

// attestedSource is where an image and its attestations are.
type attestedSource interface {
	// named returns what the image's name stands for.
	named(ctx context.Context) (image.Named, error)
	// document returns a manifest, verified.
	document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// open returns a reader of a blob that fails at its end if the bytes are not those of desc.
	open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
}

// Attested finds an image and its attestations, which are listed but not read: in an OCI layout, oci-layout://DIR[:TAG|@DIGEST]; in the
// store, unless remote is set; or in its registry. Only images for a platform are listed if it is not "".
func (set *Images) Attested(ctx context.Context, name, platform string, remote bool) (_ *Attested, err error) {
	a := &Attested{close: func() error { return nil }}
	var want llb.Platform
	if platform != "" {
		if want, err = llb.ParsePlatform(platform, llb.Host()); err != nil {
			return nil, &input.Error{Err: err}
		}
	}
	if a.Name, err = set.findAttested(ctx, a, name, remote); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	named, err := a.source.named(ctx)
	if err != nil {
		return nil, err
	}
	a.Digest = named.Target.Digest
	doc, err := image.Parse(named.Data, named.Declared)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.Name, err)
	}
	if doc.Index == nil {
		named.Target.MediaType = doc.MediaType
		a.Images = []AttestedImage{{Digest: a.Digest, Entries: []ocispec.Descriptor{named.Target}}}
		return a, nil
	}
	only := digest.Digest("")
	if platform != "" {
		fitting, _ := image.Choose(doc.Index.Manifests, OCIPlatform(want))
		if len(fitting) == 0 {
			return nil, &image.PlatformError{Ref: a.Name, Want: want.String(), Have: image.DescribePlatforms(doc.Index.Manifests)}
		}
		only = fitting[0].Digest
	}
	if err := a.index(ctx, doc.Index.Manifests, only); err != nil {
		return nil, fmt.Errorf("%s: %w", a.Name, err)
	}
	return a, nil
}

// findAttested finds where an image is, and returns its name.
func (set *Images) findAttested(ctx context.Context, a *Attested, name string, remote bool) (string, error) {
	if at, ok := strings.CutPrefix(name, layout.Scheme); ok {
		dir, ref, isDigest := strings.Cut(at, "@")
		if !isDigest {
			dir, ref = imagename.SplitTag(dir)
		}
		l, err := layout.Open(dir)
		if err != nil {
			return "", err
		}
		a.close = l.Close
		a.source, a.signatures = layoutSource{l, ref}, attached.Layout{Layout: l}
		return name, nil
	}
	if !remote {
		img, err := set.lookup(ctx, name)
		if err == nil {
			a.source = storeSource{set.store, img.Desc}
			if r, err := set.Repository(name); err == nil {
				a.signatures = r
			}
			return name, nil
		}
		if !errors.As(err, new(*cas.NotFoundError)) {
			return "", err
		}
	}
	r, err := set.Repository(name)
	a.source, a.signatures = registrySource{set, r.Name}, r
	return r.Name.String(), err
}

// maxAttested is how many manifests of attestations are read of an index: several for each platform that there is.
const maxAttested = 256

// index lists the images of an index, or only one, and their attestations.
func (a *Attested) index(ctx context.Context, entries []ocispec.Descriptor, only digest.Digest) error {
	at := map[digest.Digest]int{}
	for _, d := range entries {
		if !cas.IsManifest(d.MediaType) || !attestation.IsImage(d) || only != "" && d.Digest != only {
			continue
		}
		if i, twice := at[d.Digest]; twice {
			a.Images[i].Entries = append(a.Images[i].Entries, d)
			continue
		}
		at[d.Digest] = len(a.Images)
		img := AttestedImage{Digest: d.Digest, Entries: []ocispec.Descriptor{d}}
		if d.Platform != nil {
			img.Platform = image.PlatformName(*d.Platform)
		}
		a.Images = append(a.Images, img)
	}
	read := 0
	for _, d := range entries {
		of, attests := attestation.Subject(d)
		i, ok := at[of]
		if !attests || !ok || !cas.IsManifest(d.MediaType) {
			continue
		}
		if read++; read > maxAttested {
			return fmt.Errorf("it has more than %d manifests of attestations: choose an image with --platform", maxAttested)
		}
		data, err := a.source.document(ctx, d)
		if err != nil {
			return err
		}
		doc, err := image.Parse(data, d.MediaType)
		if err == nil && doc.Manifest == nil {
			err = errors.New("it is an index")
		}
		if err == nil && doc.Manifest.Subject != nil && doc.Manifest.Subject.Digest != of {
			err = fmt.Errorf("they are listed as those of %s, and their subject is %s", of, doc.Manifest.Subject.Digest)
		}
		if err != nil {
			return fmt.Errorf("read the attestations %s: %w", d.Digest, err)
		}
		for _, l := range doc.Manifest.Layers {
			if l.MediaType == attestation.MediaType {
				stored := StoredAttestation{PredicateType: l.Annotations[attestation.PredicateAnnotation], Desc: l}
				a.Images[i].Attestations = append(a.Images[i].Attestations, stored)
			}
		}
	}
	return nil
}

// Document returns a manifest of the image or of its index, verified.
func (a *Attested) Document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return a.source.document(ctx, desc)
}

// Blob returns a blob of at most limit bytes, verified.
func (a *Attested) Blob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	rc, err := a.source.open(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return cas.ReadAll(rc, desc, limit)
}

// Read returns the bytes of an attestation.
func (a *Attested) Read(ctx context.Context, s StoredAttestation) (data []byte, err error) {
	if s.Desc.Size > attestation.MaxStatement {
		return nil, fmt.Errorf("read the attestation %s: one of more than %d MiB is not read", s.Desc.Digest, attestation.MaxStatement>>20)
	}
	if data, err = a.Blob(ctx, s.Desc, attestation.MaxStatement); err != nil {
		err = fmt.Errorf("read the attestation %s: %w", s.Desc.Digest, err)
	}
	return data, err
}

// Close ends the reading.
func (a *Attested) Close() error { return a.close() }

// Signatures returns what may be signatures of the image. Those of an image of the store are in the registry that its name says.
func (a *Attested) Signatures(ctx context.Context) ([]signature.Candidate, error) {
	return attached.Find(ctx, a.signatures, a.Digest)
}

// storeSource is an image of the store.
type storeSource struct {
	store *cas.Store
	desc  ocispec.Descriptor
}

func (s storeSource) named(context.Context) (image.Named, error) {
	data, err := s.store.ReadAll(s.desc, 0)
	return image.Named{Target: s.desc, Data: data, Declared: s.desc.MediaType}, err
}

func (s storeSource) document(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return s.store.ReadAll(desc, 0)
}

func (s storeSource) open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return s.store.Open(desc)
}

// layoutSource is an image of an OCI layout.
type layoutSource struct {
	layout *layout.Layout
	ref    string
}

func (s layoutSource) named(ctx context.Context) (image.Named, error) {
	return s.layout.Named(ctx, s.ref, OCIPlatform(llb.Host()))
}

func (s layoutSource) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	data, _, err := image.Fetched{Fetcher: s.layout}.Document(ctx, desc)
	return data, err
}

func (s layoutSource) open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return s.layout.Fetch(ctx, "", desc)
}

// registrySource is an image of a registry.
type registrySource struct {
	set *Images
	ref imagename.Name
}

func (s registrySource) named(ctx context.Context) (image.Named, error) {
	desc, data, err := s.set.client.Document(ctx, s.ref.String(), s.set.store)
	return image.Named{Target: desc, Data: data, Declared: desc.MediaType}, err
}

func (s registrySource) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	ref := s.ref
	ref.Tag, ref.Digest = "", desc.Digest
	_, data, err := s.set.client.Document(ctx, ref.String(), s.set.store)
	return data, err
}

func (s registrySource) open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return s.set.client.Fetch(ctx, s.ref.String(), desc)
}
