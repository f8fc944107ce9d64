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

// maxIndex is the maximum size of index.json in bytes, enough for some fifty thousand images.
const maxIndex = 16 << 20

// minIDPrefix is the minimum number of hexadecimal digits that Lookup accepts, so that a short image name is not taken for a
// digest.
const minIDPrefix = 4

// NameAnnotation is the annotation with an image's full name that containerd and tools based on it use.
//
// ocispec.AnnotationRefName (org.opencontainers.image.ref.name) has the same value, whereas BuildKit sets it to the tag only:
// here one index lists the images of many repositories, most of them tagged "latest", and tools find an image by this annotation.
// `skopeo inspect oci:ROOT:docker.io/library/app:latest`, `podman pull` and `crane` compare the whole value, and the grammar of
// image-spec (annotations.md) allows ":" and "/" in it.
const NameAnnotation = "io.containerd.image.name"

// Image is an image of the store.
type Image struct {
	// Name is the full name, such as "docker.io/library/app:latest", or "" for an image without a name.
	Name string
	// Desc describes the manifest or index, with the annotations of its entry in index.json.
	Desc ocispec.Descriptor
}

// NotFoundError is returned if the store has no image with a name or ID.
type NotFoundError struct{ Ref string }

func (e *NotFoundError) Error() string { return fmt.Sprintf("no image %q in the image store", e.Ref) }

// AmbiguousError is returned if the prefix of an ID matches several images.
type AmbiguousError struct {
	Ref string
	IDs []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("image ID %q is ambiguous: it matches %s", e.Ref, termtext.List(e.IDs))
}

func (s *Store) indexPath() string { return filepath.Join(s.root, ocispec.ImageIndexFile) }

// Tag gives a manifest or index a full name, and removes that name from any other image. If name is "", the image is listed
// without a name, unless it already has one. The blobs must be in the store. The entry keeps the media type, digest, size,
// platform and annotations of desc, except those that hold a name.
func (s *Store) Tag(name string, desc ocispec.Descriptor) error {
	if name != "" && !validName(name) {
		return fmt.Errorf("tag image: %q is not a valid image name", name)
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

// Untag removes a name from its image. The blobs stay. The error is a *NotFoundError if no image has the name.
func (s *Store) Untag(name string) error {
	return s.remove(name, func(d ocispec.Descriptor) bool { return name != "" && nameOf(d) == name })
}

// Drop removes the image, with all its names, from the list. The blobs stay. The error is a *NotFoundError if the image is not
// listed.
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

// Images returns the images of the store in the order in which they were named.
func (s *Store) Images() ([]Image, error) {
	index, err := s.index()
	if err != nil {
		return nil, err
	}
	return list(index), nil
}

// List returns the images of the store at root without opening it: nothing is created, locked or held, so an image may be gone before it is
// looked at.
func List(root string) ([]Image, error) {
	index, err := readIndex(filepath.Join(root, ocispec.ImageIndexFile))
	if err != nil {
		return nil, err
	}
	return list(index), nil
}

func list(index *ocispec.Index) []Image {
	images := make([]Image, 0, len(index.Manifests))
	for _, d := range index.Manifests {
		images = append(images, Image{Name: nameOf(d), Desc: d})
	}
	return images
}

// Lookup returns the image that ref refers to: by its full name, or by at least four leading digits of the digest of its manifest
// or index, with or without "sha256:". The error is a *NotFoundError, or an *AmbiguousError if images with different digests
// match.
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

// nameOf returns the name of an entry. Other tools that write layouts only set the first annotation.
func nameOf(d ocispec.Descriptor) string {
	if name := d.Annotations[ocispec.AnnotationRefName]; name != "" {
		return name
	}
	return d.Annotations[NameAnnotation]
}

// index reads index.json. If that fails, the index is never taken to be empty: the next Tag would overwrite it.
func (s *Store) index() (*ocispec.Index, error) {
	index, err := readIndex(s.indexPath())
	if err != nil {
		return nil, fmt.Errorf("read the list of images %s: %w; "+
			"kiln check --repair rebuilds it from the images in the store", s.indexPath(), err)
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

// Locked calls f with the entries of index.json while it is locked against changes by other processes.
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

// Forget removes an image from the list if it has no name; the blobs stay. It reports whether the image was removed.
func (s *Store) Forget(d digest.Digest) (bool, error) {
	err := s.remove(string(d), func(e ocispec.Descriptor) bool { return e.Digest == d && nameOf(e) == "" })
	if errors.As(err, new(*NotFoundError)) {
		return false, nil
	}
	return err == nil, err
}

// edit replaces the entries of index.json by the result of f, under the lock shared by all kiln processes.
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

// validName reports whether name is valid for an image of the store.
func validName(name string) bool {
	_, err := imagename.Parse(name)
	return err == nil
}
