package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits of an archive of images, besides those of its size.
const (
	// maxArchived is how many files it may have: some thousand images.
	maxArchived = 1 << 17
	// maxArchiveLinks is how many links lead from a name to its file: one, in the archives of older dockers.
	maxArchiveLinks = 8
	// manifestFile lists the images of an archive of docker save.
	manifestFile = "manifest.json"
)

// ArchiveError says that an archive has no images that can be loaded.
type ArchiveError struct{ Why string }

func (e *ArchiveError) Error() string { return "load images: the archive " + e.Why }

func archiveErrorf(format string, args ...any) error {
	return &ArchiveError{fmt.Sprintf(format, args...)}
}

// LoadOptions are options of Load. The zero value is valid.
type LoadOptions struct {
	// Platform chooses from images for several; "" takes them whole.
	Platform string
	// MaxSize bounds the archive, uncompressed, in bytes; 0 is layer.DefaultLimit's.
	MaxSize int64
}

// Loaded is an image that Load has found.
type Loaded struct {
	// Names are its names in full; none where the archive gives none.
	Names []string
	// ID is as in Info.
	ID   string
	desc ocispec.Descriptor
}

// Load brings the images of an archive into the store and gives them their names: a tar, compressed by gzip or zstd or not at all, that
// is an OCI image layout or comes from docker save. The archive is read once, from its beginning to its end, and not trusted: every blob
// is compared with its digest, and every image has to be whole before the first gets its name.
func (set *Images) Load(ctx context.Context, r io.Reader, o LoadOptions) ([]Loaded, error) {
	limit := layer.Limit{Size: o.MaxSize}.OrDefault()
	a := &archive{set: set, blobs: map[string]ocispec.Descriptor{}, links: map[string]string{}, documents: map[string][]byte{}}
	if err := a.read(ctx, r, limit.Size); err != nil {
		return nil, err
	}
	images, err := a.images(ctx, o.Platform)
	if err != nil {
		return nil, err
	}
	if len(images) == 0 {
		return nil, archiveErrorf("has no image")
	}
	for i := range images {
		info, err := set.info(images[i].desc)
		if err != nil {
			return nil, err
		}
		images[i].ID = info.ID
	}
	for _, img := range images {
		names := img.Names
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			if err := set.store.Tag(name, img.desc); err != nil {
				return nil, err
			}
		}
	}
	return images, nil
}

// archive is an archive of images that was read.
type archive struct {
	set *Images
	// blobs are its files by their paths, which are in the store by now; links what links lead to.
	blobs map[string]ocispec.Descriptor
	links map[string]string
	// documents are the files that list what is in it.
	documents map[string][]byte
}

// uncompress reads ahead if r is a file: otherwise Close could wait for more of it.
func uncompress(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	if f, ok := r.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			return layer.UncompressAhead(ctxio.Reader(ctx, f), nil)
		}
	}
	return layer.Uncompress(ctxio.Reader(ctx, r))
}

// read puts the files of a tar into the store.
func (a *archive) read(ctx context.Context, r io.Reader, maxSize int64) error {
	plain, err := uncompress(ctx, r)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return archiveErrorf("ends too early")
	}
	if err != nil {
		return fmt.Errorf("load images: %w", err)
	}
	defer plain.Close()
	limited := &io.LimitedReader{R: plain, N: maxSize}
	tr := tar.NewReader(limited)
	files := int64(0) // their bytes: a sparse one has more than the archive has of it
	for n := 0; ; n++ {
		h, err := tr.Next()
		switch {
		case limited.N <= 0:
			return archiveErrorf("has more than %d bytes, which archive.maxSize in kiln.toml allows", maxSize)
		case err == io.EOF && n == 0:
			return archiveErrorf("is empty")
		case err == io.EOF:
			return nil
		case n == 0 && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF)):
			return archiveErrorf("is not a tar, or ends too early")
		case errors.Is(err, io.ErrUnexpectedEOF):
			return archiveErrorf("ends too early")
		case err != nil:
			return fmt.Errorf("load images: read the archive: %w", err)
		case n == maxArchived:
			return archiveErrorf("has more than %d files", maxArchived)
		case h.Size > maxSize-files:
			return archiveErrorf("has files of more than %d bytes, which archive.maxSize in kiln.toml allows", maxSize)
		}
		files += h.Size
		if err := a.add(ctx, tr, h); err != nil {
			if limited.N <= 0 {
				return archiveErrorf("has more than %d bytes, which archive.maxSize in kiln.toml allows", maxSize)
			}
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return archiveErrorf("ends too early")
			}
			return err
		}
	}
}

// add takes in one member of a tar.
func (a *archive) add(ctx context.Context, tr *tar.Reader, h *tar.Header) error {
	name := path.Clean("/" + h.Name)[1:]
	switch h.Typeflag {
	case tar.TypeSymlink:
		a.links[name] = path.Join("/", path.Dir(name), h.Linkname)[1:]
		return nil
	case tar.TypeLink:
		a.links[name] = path.Clean("/" + h.Linkname)[1:]
		return nil
	case tar.TypeReg:
	default:
		return nil
	}
	_, isBlob := a.blobs[name]
	if _, isDocument := a.documents[name]; isBlob || isDocument {
		return archiveErrorf("has two files %q", name)
	}
	switch name {
	case ocispec.ImageIndexFile, ocispec.ImageLayoutFile, manifestFile:
		if h.Size > cas.MaxManifest {
			return archiveErrorf("has a file %s of more than %d bytes", name, cas.MaxManifest)
		}
		data, err := io.ReadAll(io.LimitReader(tr, cas.MaxManifest))
		a.documents[name] = data
		return err
	}
	var want digest.Digest
	if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
		d, err := cas.ParseDigest("sha256:" + hex)
		if err != nil {
			return archiveErrorf("has a file %q: %v", name, err)
		}
		want = d
	}
	w, err := a.set.store.Create(ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.Copy(w, tr); err != nil {
		return fmt.Errorf("load images: read %q of the archive: %w", name, err)
	}
	desc, err := w.Commit(want, h.Size)
	if _, ok := errors.AsType[*cas.MismatchError](err); ok {
		return archiveErrorf("has a file %q whose content has another digest", name)
	}
	a.blobs[name] = desc
	return err
}

// images returns the images that the archive lists, checked.
func (a *archive) images(ctx context.Context, platform string) ([]Loaded, error) {
	docker, isDocker := a.documents[manifestFile]
	if index, ok := a.documents[ocispec.ImageIndexFile]; ok && a.documents[ocispec.ImageLayoutFile] != nil {
		return a.layout(ctx, index, docker, platform)
	}
	if !isDocker {
		return nil, archiveErrorf("is not an OCI image layout, and has no %s of docker save", manifestFile)
	}
	list, err := parseSaved(docker)
	if err != nil {
		return nil, err
	}
	var out []Loaded
	for _, s := range list {
		desc, err := a.convert(ctx, s)
		if err != nil {
			return nil, err
		}
		names, err := fullNames(s.RepoTags)
		if err != nil {
			return nil, err
		}
		out = append(out, Loaded{Names: names, desc: desc})
	}
	return out, nil
}

// layout returns the images of an OCI image layout. Names that are not in its index are in the manifest.json of docker save.
func (a *archive) layout(ctx context.Context, index, docker []byte, platform string) ([]Loaded, error) {
	var list ocispec.Index
	if err := json.Unmarshal(index, &list); err != nil {
		return nil, archiveErrorf("has an %s that cannot be read: %v", ocispec.ImageIndexFile, err)
	}
	if err := image.CheckDescriptors(list.Manifests); err != nil {
		return nil, archiveErrorf("has an %s that is invalid: %v", ocispec.ImageIndexFile, err)
	}
	var out []Loaded
	at := map[digest.Digest]int{}
	for _, entry := range list.Manifests {
		i, known := at[entry.Digest]
		if !known {
			desc, err := a.check(ctx, entry, platform)
			if err != nil {
				return nil, err
			}
			i = len(out)
			at[entry.Digest] = i
			out = append(out, Loaded{desc: desc})
		}
		name := entry.Annotations[cas.NameAnnotation]
		if ref := entry.Annotations[ocispec.AnnotationRefName]; name == "" && strings.ContainsAny(ref, "/:") {
			name = ref // a tag alone is not the name of an image
		}
		if name == "" {
			continue
		}
		names, err := fullNames([]string{name})
		if err != nil {
			return nil, err
		}
		out[i].Names = append(out[i].Names, names...)
	}
	if docker == nil {
		return out, nil
	}
	saved, err := parseSaved(docker)
	if err != nil {
		return nil, err
	}
	for i := range out {
		if len(out[i].Names) > 0 {
			continue
		}
		m, _, err := a.set.manifestOf(out[i].desc)
		if err != nil {
			continue // an index
		}
		for _, s := range saved {
			if config, ok := a.find(s.Config); ok && config.Digest == m.Config.Digest {
				if out[i].Names, err = fullNames(s.RepoTags); err != nil {
					return nil, err
				}
			}
		}
	}
	return out, nil
}

// check returns the image that an entry of an index means, or that for a platform, after it has found that it is whole. Of an index
// whose images are not all there those are kept that are.
func (a *archive) check(ctx context.Context, entry ocispec.Descriptor, platform string) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: entry.MediaType, Digest: entry.Digest, Size: entry.Size}
	data, err := a.document(desc)
	if err != nil {
		return desc, err
	}
	doc, err := image.Parse(data, desc.MediaType)
	if err != nil {
		return desc, archiveErrorf("has an invalid image: %v", err)
	}
	desc.MediaType = doc.MediaType
	if doc.Manifest != nil {
		return desc, a.checkManifest(ctx, desc, data)
	}
	there, err := a.checkIndex(ctx, doc.Index)
	switch {
	case err != nil:
		return desc, err
	case !slices.ContainsFunc(there, attestation.IsImage):
		return desc, archiveErrorf("has an index without one of its images")
	case platform != "":
		return a.set.choose(there, "the archive", platform)
	case len(there) == 1:
		return there[0], nil
	case len(there) == len(doc.Index.Manifests):
		return desc, nil
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: desc.MediaType, Manifests: there}
	if data, err = json.Marshal(index); err != nil {
		return desc, err
	}
	return a.set.store.Put(index.MediaType, data)
}

// checkIndex returns the images of an index that the archive has, and then their attestations.
func (a *archive) checkIndex(ctx context.Context, index *ocispec.Index) (there []ocispec.Descriptor, err error) {
	images := map[digest.Digest]bool{}
	for _, d := range index.Manifests {
		if _, attests := attestation.Subject(d); attests || !a.set.store.Has(d) {
			continue
		}
		if cas.IsIndex(d.MediaType) {
			return nil, archiveErrorf("has an index in an index")
		}
		data, err := a.document(d)
		if err == nil {
			err = a.checkManifest(ctx, d, data)
		}
		if err != nil {
			return nil, err
		}
		images[d.Digest] = true
		there = append(there, d)
	}
	for _, d := range index.Manifests {
		if of, attests := attestation.Subject(d); !attests || !images[of] || !a.set.store.Has(d) {
			continue
		}
		if err := a.checkAttestations(d); err != nil {
			return nil, err
		}
		there = append(there, d)
	}
	return there, nil
}

// checkAttestations finds out that the blobs of a manifest of attestations are there.
func (a *archive) checkAttestations(desc ocispec.Descriptor) error {
	data, err := a.document(desc)
	if err != nil {
		return err
	}
	doc, err := image.Parse(data, desc.MediaType)
	if err == nil && doc.Manifest == nil {
		err = errors.New("they are an index")
	}
	if err != nil {
		return archiveErrorf("has invalid attestations: %v", err)
	}
	for _, d := range append([]ocispec.Descriptor{doc.Manifest.Config}, doc.Manifest.Layers...) {
		if !a.set.store.Has(d) {
			return archiveErrorf("lacks the attestation %s, or has one of another size", d.Digest)
		}
	}
	return nil
}

// document returns the bytes of a manifest or index.
func (a *archive) document(desc ocispec.Descriptor) ([]byte, error) {
	if !a.set.store.Has(desc) {
		return nil, archiveErrorf("lacks the manifest %s", desc.Digest)
	}
	return a.set.store.ReadAll(desc, 0)
}

// checkManifest finds out that the config of a manifest agrees with it, and that its blobs are there.
func (a *archive) checkManifest(ctx context.Context, desc ocispec.Descriptor, data []byte) error {
	named := image.Named{Ref: "the archive", Target: desc, Data: data, Declared: desc.MediaType}
	img, err := image.Resolve(ctx, stored{a.set.store}, named, ocispec.Platform{}, a.set.store)
	if err != nil {
		return archiveErrorf("has an invalid image: %v", err)
	}
	for i, l := range img.Manifest.Layers {
		if !a.set.store.Has(l) {
			return archiveErrorf("lacks the layer %s, or has one of another size", l.Digest)
		}
		if isPlainLayer(l.MediaType) && l.Digest != img.DiffIDs[i] {
			return archiveErrorf("has a layer %s that its image's configuration lists as %s", l.Digest, img.DiffIDs[i])
		}
	}
	return nil
}

func isPlainLayer(mediaType string) bool {
	return strings.HasSuffix(mediaType, ".tar")
}

// stored reads documents from the store.
type stored struct{ *cas.Store }

// Document implements image.Documents.
func (s stored) Document(_ context.Context, desc ocispec.Descriptor) ([]byte, string, error) {
	data, err := s.ReadAll(desc, 0)
	return data, desc.MediaType, err
}

// Blob implements image.Documents.
func (s stored) Blob(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if !s.Has(desc) {
		return nil, fmt.Errorf("the configuration %s is missing", desc.Digest)
	}
	return s.ReadAll(desc, 0)
}

// savedImage is an image in the manifest.json of docker save (moby, image/tarexport).
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func parseSaved(data []byte) ([]savedImage, error) {
	var list []savedImage
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, archiveErrorf("has a %s that cannot be read: %v", manifestFile, err)
	}
	return list, nil
}

// find returns the file that a path leads to, through links.
func (a *archive) find(name string) (ocispec.Descriptor, bool) {
	name = path.Clean("/" + name)[1:]
	for range maxArchiveLinks {
		if desc, ok := a.blobs[name]; ok {
			return desc, true
		}
		if name = a.links[name]; name == "" {
			break
		}
	}
	return ocispec.Descriptor{}, false
}

// convert puts the manifest of an image of docker save into the store, which has none of its own.
func (a *archive) convert(ctx context.Context, s savedImage) (ocispec.Descriptor, error) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	config, ok := a.find(s.Config)
	if !ok {
		return config, archiveErrorf("lacks the configuration %q", s.Config)
	}
	m.Config = config
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	for _, name := range s.Layers {
		l, ok := a.find(name)
		if !ok {
			return l, archiveErrorf("lacks the layer %q", name)
		}
		var err error
		if l.MediaType, err = a.layerType(l); err != nil {
			return l, err
		}
		m.Layers = append(m.Layers, l)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return config, err
	}
	desc, err := a.set.store.Put(m.MediaType, data)
	if err != nil {
		return desc, err
	}
	return desc, a.checkManifest(ctx, desc, data)
}

// layerType returns the media type of a layer by how it begins.
func (a *archive) layerType(desc ocispec.Descriptor) (string, error) {
	r, err := a.set.store.Open(desc)
	if err != nil {
		return "", err
	}
	defer r.Close()
	head := make([]byte, 4)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return "", err
	}
	switch head := string(head[:n]); {
	case strings.HasPrefix(head, "\x1f\x8b"):
		return ocispec.MediaTypeImageLayerGzip, nil
	case layer.IsZstd(head):
		return ocispec.MediaTypeImageLayerZstd, nil
	}
	return ocispec.MediaTypeImageLayer, nil
}

// fullNames returns names of images in full.
func fullNames(names []string) ([]string, error) {
	var out []string
	for _, name := range names {
		ref, err := imagename.Parse(name)
		if err != nil {
			return nil, archiveErrorf("has an image with an invalid name: %v", err)
		}
		if ref.Tag == "" {
			continue // a digest is not a name here
		}
		ref.Digest = ""
		out = append(out, ref.String())
	}
	return out, nil
}
