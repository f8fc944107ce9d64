package cas

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxIndex bounds index.json in bytes: some fifty thousand images.
const maxIndex = 16 << 20

// minIDPrefix is how many hexadecimal digits Lookup wants at least, so that a short image name is not taken for one.
const minIDPrefix = 4

// NameAnnotation holds an image's full name for containerd and those who follow it.
//
// ocispec.AnnotationRefName (org.opencontainers.image.ref.name) holds the same full name, where BuildKit puts the tag
// alone: one index holds the images of many repositories here, most of them tagged "latest", and the tools find an image
// by this annotation. `skopeo inspect oci:ROOT:docker.io/library/app:latest`, `podman pull` of the same and `crane` compare
// it as a whole, and the grammar of image-spec (annotations.md) allows ":" and "/" in it.
const NameAnnotation = "io.containerd.image.name"

// Image is an image of the store.
type Image struct {
	// Name is the full name, "docker.io/library/app:latest", or "" for one that was built without a name.
	Name string
	// Desc is the manifest or index, with the annotations of its entry in index.json.
	Desc ocispec.Descriptor
}

// NotFoundError says that the store has no image of a name or id.
type NotFoundError struct{ Ref string }

func (e *NotFoundError) Error() string { return fmt.Sprintf("no image %q in the image store", e.Ref) }

// AmbiguousError says that an id's prefix fits several images.
type AmbiguousError struct {
	Ref string
	IDs []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("image id %q could be any of %s", e.Ref, termtext.List(e.IDs))
}

func (s *Store) indexPath() string { return filepath.Join(s.root, ocispec.ImageIndexFile) }

// Tag gives a manifest or index the name, which it takes from any other image that has it. The name is the full one; with
// "" the image is listed without a name, unless it has one already. The blobs must be in the store; of desc the media type,
// digest, size, platform and those annotations are kept that give no name.
func (s *Store) Tag(name string, desc ocispec.Descriptor) error {
	if name != "" && !validName(name) {
		return fmt.Errorf("tag image: %q is not the name of an image", name)
	}
	if _, err := ParseDigest(string(desc.Digest)); err != nil {
		return fmt.Errorf("tag image %s: %w", name, err)
	}
	if !s.Has(desc) {
		return fmt.Errorf("tag image %s: blob %s is not in the image store", name, desc.Digest)
	}
	entry := ocispec.Descriptor{
		MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size,
		Platform: desc.Platform, Annotations: map[string]string{},
	}
	maps.Copy(entry.Annotations, desc.Annotations)
	delete(entry.Annotations, ocispec.AnnotationRefName)
	delete(entry.Annotations, NameAnnotation)
	if name != "" {
		entry.Annotations[ocispec.AnnotationRefName], entry.Annotations[NameAnnotation] = name, name
	}
	return s.edit(func(entries []ocispec.Descriptor) []ocispec.Descriptor {
		if name == "" && slices.ContainsFunc(entries, func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest }) {
			return entries
		}
		entries = slices.DeleteFunc(entries, func(d ocispec.Descriptor) bool {
			return nameOf(d) == name && (name != "" || d.Digest == desc.Digest) || nameOf(d) == "" && d.Digest == desc.Digest
		})
		return append(entries, entry)
	})
}

// Untag takes the name from the image that has it. The blobs stay. The error is a *NotFoundError when none has it.
func (s *Store) Untag(name string) error {
	return s.remove(name, func(d ocispec.Descriptor) bool { return name != "" && nameOf(d) == name })
}

// Drop takes all names from the image and lists it no more. The blobs stay. The error is a *NotFoundError when the image is
// not listed.
func (s *Store) Drop(desc ocispec.Descriptor) error {
	return s.remove(string(desc.Digest), func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest })
}

func (s *Store) remove(what string, gone func(ocispec.Descriptor) bool) error {
	found := false
	err := s.edit(func(entries []ocispec.Descriptor) []ocispec.Descriptor {
		n := len(entries)
		entries = slices.DeleteFunc(entries, gone)
		found = len(entries) < n
		return entries
	})
	if err == nil && !found {
		err = &NotFoundError{Ref: what}
	}
	return err
}

// Images returns the images of the store in the order in which they got their names.
func (s *Store) Images() ([]Image, error) {
	index, err := s.index()
	if err != nil {
		return nil, err
	}
	images := make([]Image, 0, len(index.Manifests))
	for _, d := range index.Manifests {
		images = append(images, Image{Name: nameOf(d), Desc: d})
	}
	return images, nil
}

// Lookup returns the image that ref names: by its full name, or by the digest of its manifest or index or the first digits
// of that, four at least, with or without "sha256:". The error is a *NotFoundError, or an *AmbiguousError when the digits
// fit images with different digests.
func (s *Store) Lookup(ref string) (Image, error) {
	images, err := s.Images()
	if err != nil {
		return Image{}, err
	}
	for _, img := range images {
		if img.Name == ref && ref != "" {
			return img, nil
		}
	}
	prefix := strings.TrimPrefix(ref, digestPrefix)
	if len(prefix) < minIDPrefix || strings.Trim(prefix, "0123456789abcdef") != "" {
		return Image{}, &NotFoundError{Ref: ref}
	}
	var fits []Image
	var ids []string
	for _, img := range images {
		if strings.HasPrefix(string(img.Desc.Digest), digestPrefix+prefix) && !slices.Contains(ids, string(img.Desc.Digest)) {
			fits, ids = append(fits, img), append(ids, string(img.Desc.Digest))
		}
	}
	switch len(fits) {
	case 0:
		return Image{}, &NotFoundError{Ref: ref}
	case 1:
		return fits[0], nil
	}
	return Image{}, &AmbiguousError{Ref: ref, IDs: ids}
}

// nameOf returns the name of an entry. Tools that write layouts of their own set the first annotation alone.
func nameOf(d ocispec.Descriptor) string {
	if name := d.Annotations[ocispec.AnnotationRefName]; name != "" {
		return name
	}
	return d.Annotations[NameAnnotation]
}

// index reads index.json. One that cannot be read is never taken for an empty one: the next Tag would make that true.
func (s *Store) index() (*ocispec.Index, error) {
	index, err := readIndex(s.indexPath())
	if err != nil {
		return nil, fmt.Errorf("read the list of images %s: %w; "+
			"kiln check --repair makes it again from the images that are there", s.indexPath(), err)
	}
	return index, nil
}

func readIndex(path string) (*ocispec.Index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxIndex {
		return nil, fmt.Errorf("it is larger than %d bytes", maxIndex)
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, err
	}
	if index.SchemaVersion != 2 {
		return nil, fmt.Errorf("its schemaVersion is %d, not 2", index.SchemaVersion)
	}
	for _, d := range index.Manifests {
		if _, err := ParseDigest(string(d.Digest)); err != nil {
			return nil, err
		}
	}
	return &index, nil
}

// Locked calls f with the entries of index.json while no process can change them.
func (s *Store) Locked(f func([]ocispec.Descriptor) error) (err error) {
	l, err := lock.Acquire(s.Context, filepath.Join(s.root, locksDir, rootdir.IndexLock), false)
	if err != nil {
		return fmt.Errorf("lock the list of images: %w", err)
	}
	defer func() { err = errors.Join(err, l.Release()) }()
	index, err := s.index()
	if err != nil {
		return err
	}
	return f(index.Manifests)
}

// Forget lists an image no more that has no name; the blobs stay. It reports whether there was one.
func (s *Store) Forget(d digest.Digest) (bool, error) {
	err := s.remove(string(d), func(e ocispec.Descriptor) bool { return e.Digest == d && nameOf(e) == "" })
	if errors.As(err, new(*NotFoundError)) {
		return false, nil
	}
	return err == nil, err
}

// edit replaces index.json by what f makes of its entries, under the lock that all kiln processes take for that.
func (s *Store) edit(f func([]ocispec.Descriptor) []ocispec.Descriptor) (err error) {
	l, err := lock.Acquire(s.Context, filepath.Join(s.root, locksDir, rootdir.IndexLock), false)
	if err != nil {
		return fmt.Errorf("change the list of images: %w", err)
	}
	defer func() { err = errors.Join(err, l.Release()) }()
	index, err := s.index()
	if err != nil {
		return err
	}
	index.Manifests = f(index.Manifests)
	data, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("change the list of images: %w", err)
	}
	if err := s.replaceIndex(s.Context, data); err != nil {
		return fmt.Errorf("change the list of images: %w", err)
	}
	return nil
}

func (s *Store) replaceIndex(ctx context.Context, data []byte) error {
	return s.publish(ctx, data, func(temp string) error { return os.Rename(temp, s.indexPath()) })
}

// validName reports whether an image of the store can have the name.
func validName(name string) bool {
	_, err := imagename.Parse(name)
	return err == nil
}
