// Package layout reads images from OCI layouts in directories (image-spec, image-layout.md). It does not trust what is in them.
package layout

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Scheme begins the name of an image in an OCI layout.
const Scheme = "oci-layout://"

// maxLayoutFile bounds the file oci-layout in bytes: it holds a version.
const maxLayoutFile = 4 << 10

// Layout is an OCI layout in a directory. It is an image.Source. Sizes are limited, blobs verified, and no path leads out of the directory.
type Layout struct {
	dir  string
	root *rootfs.Root
}

// Open opens the layout in a directory. The caller closes it.
func Open(dir string) (*Layout, error) {
	root, err := rootfs.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open OCI layout: %w", err)
	}
	l := &Layout{dir: dir, root: root}
	if err := l.check(); err != nil {
		root.Close()
		return nil, l.wrap(err)
	}
	return l, nil
}

// Close closes the directory. Readers that Fetch returned stay valid.
func (l *Layout) Close() error { return l.root.Close() }

func (l *Layout) wrap(err error) error {
	return fmt.Errorf("read OCI layout %s: %w", rootdir.Shown(l.dir), err)
}

func (l *Layout) check() error {
	data, err := l.read(ocispec.ImageLayoutFile, maxLayoutFile)
	if err != nil {
		return err
	}
	var v ocispec.ImageLayout
	if err := json.Unmarshal(data, &v); err != nil {
		return fetch.Invalid("read %s: %w", ocispec.ImageLayoutFile, err)
	}
	if v.Version != ocispec.ImageLayoutVersion {
		return fetch.Invalid("its version is %q, and this kiln supports %s", fetch.Quote(v.Version), ocispec.ImageLayoutVersion)
	}
	return nil
}

// open opens a regular file of the layout; symbolic links are followed inside it.
func (l *Layout) open(name string) (*os.File, os.FileInfo, error) {
	f, err := l.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0) // a fifo would block
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fetch.Invalid("%s is not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

func (l *Layout) read(name string, limit int64) ([]byte, error) {
	f, _, err := l.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fetch.Invalid("%s is larger than %d bytes", name, limit)
	}
	return data, nil
}

func blobName(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

// Resolve finds the image that ref names: a tag or full name that an entry of index.json has, a digest, or "" for the one with the tag
// latest. If there is only one image, or no image has a name, ref is ignored. Of entries for several platforms one is chosen as from an
// index. See image.Source.
func (l *Layout) Resolve(ctx context.Context, ref string, platform ocispec.Platform, store *cas.Store) (*image.Image, error) {
	img, err := l.resolve(ctx, ref, platform, store)
	if err != nil {
		return nil, l.wrap(err)
	}
	return img, nil
}

func (l *Layout) resolve(ctx context.Context, ref string, platform ocispec.Platform, store *cas.Store) (*image.Image, error) {
	named, err := l.named(ctx, ref, platform)
	if err != nil {
		return nil, err
	}
	return image.Resolve(ctx, image.Fetched{Fetcher: l}, named, platform, store)
}

// Named returns what ref stands for, as Resolve finds it: a manifest, or an index of images for several platforms.
func (l *Layout) Named(ctx context.Context, ref string, platform ocispec.Platform) (image.Named, error) {
	named, err := l.named(ctx, ref, platform)
	if err != nil {
		return named, l.wrap(err)
	}
	return named, nil
}

func (l *Layout) named(ctx context.Context, ref string, platform ocispec.Platform) (image.Named, error) {
	target, err := l.target(ref, platform)
	if err != nil {
		return image.Named{}, err
	}
	data, declared, err := image.Fetched{Fetcher: l}.Document(ctx, target)
	return image.Named{Ref: Scheme + Name(l.dir, ref), Target: target, Data: data, Declared: declared}, err
}

// Name returns how the image of a layout in the directory dir is called, without Scheme: ref is a tag, a digest, or "".
func Name(dir, ref string) string {
	switch {
	case ref == "":
		return dir
	case strings.HasPrefix(ref, "sha256:"):
		return dir + "@" + ref
	}
	return dir + ":" + ref
}

func (l *Layout) target(ref string, platform ocispec.Platform) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	index, err := l.index()
	if err != nil {
		return none, err
	}
	var names []string
	for _, d := range index.Manifests {
		names = append(names, entryNames(d)...)
	}
	all := named(index.Manifests, "")
	fitting := named(index.Manifests, cmp.Or(ref, defaultTag))
	if len(fitting) == 0 && (ref == "" || len(all) == 1 || len(names) == 0) && !strings.HasPrefix(ref, "sha256:") {
		fitting = all // the only image is meant whatever it is called, as buildx has it
	}
	switch {
	case len(fitting) == 1:
		return fitting[0], nil
	case len(fitting) == 0:
		if d, err := cas.ParseDigest(ref); err == nil {
			f, fi, err := l.open(blobName(d)) // one of an index that is not listed itself
			if err != nil {
				return none, err
			}
			f.Close()
			return ocispec.Descriptor{Digest: d, Size: fi.Size()}, nil
		}
		if len(all) == 0 {
			return none, fetch.Invalid("it has no images")
		}
		if len(names) == 0 {
			return none, fetch.Invalid("it has no image %q; its %d images have no names: give the digest of one", ref, len(all))
		}
		return none, fetch.Invalid("it has no image %q; it has %s", ref, termtext.List(names))
	}
	best, _ := image.Choose(fitting, platform)
	if len(best) == 0 {
		return none, &image.PlatformError{Ref: Scheme + l.dir, Want: image.PlatformName(platform), Have: image.DescribePlatforms(fitting)}
	}
	if len(best) > 1 && image.Fit(platform, *best[0].Platform) == image.Fit(platform, *best[1].Platform) {
		if len(names) == 0 {
			return none, fetch.Invalid("it has several images without names: give the digest of one")
		}
		return none, fetch.Invalid("it has several images: name one of %s", termtext.List(names))
	}
	return best[0], nil
}

// defaultTag is the tag that is looked for if none is given.
const defaultTag = "latest"

// named returns the entries of index.json that have a name or a digest, each image once; "" is for all.
func named(entries []ocispec.Descriptor, ref string) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	listed := map[digest.Digest]bool{}
	for _, d := range entries {
		if !listed[d.Digest] && (ref == "" || string(d.Digest) == ref || slices.Contains(entryNames(d), ref)) {
			listed[d.Digest] = true
			out = append(out, d)
		}
	}
	return out
}

// entryNames returns the names of an entry of index.json.
func entryNames(d ocispec.Descriptor) []string {
	var names []string
	for _, key := range []string{ocispec.AnnotationRefName, cas.NameAnnotation} {
		if name := d.Annotations[key]; name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Fetch opens a blob of the layout, whatever ref is. See image.Source.
func (l *Layout) Fetch(ctx context.Context, _ string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if _, err := cas.ParseDigest(string(desc.Digest)); err != nil {
		return nil, l.wrap(err)
	}
	f, _, err := l.open(blobName(desc.Digest))
	if err != nil {
		return nil, l.wrap(err)
	}
	return cas.VerifyReader(ctxio.ReadCloser(ctx, f), desc, l.dir), nil
}

// Entries returns the entries of index.json. They may be anything that a layout holds.
func (l *Layout) Entries() ([]ocispec.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return nil, l.wrap(err)
	}
	return index.Manifests, nil
}

// index reads index.json.
func (l *Layout) index() (*ocispec.Index, error) {
	data, err := l.read(ocispec.ImageIndexFile, cas.MaxManifest)
	if err != nil {
		return nil, err
	}
	index := &ocispec.Index{}
	if err := json.Unmarshal(data, index); err != nil {
		return nil, fetch.Invalid("read %s: %w", ocispec.ImageIndexFile, err)
	}
	return index, image.CheckDescriptors(index.Manifests)
}
