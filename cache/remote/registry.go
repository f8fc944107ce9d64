package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/registry"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// InRegistry returns the repository of a registry that ref names, and the tag of ref. The error says that ref is no name with a tag.
func InRegistry(client *registry.Client, ref string) (_ Repository, tag string, err error) {
	name, err := imagename.Parse(ref)
	if err != nil {
		return nil, "", err
	}
	if name.Digest != "" {
		return nil, "", fmt.Errorf("%q has a digest, and a cache changes: give it a tag", ref)
	}
	return &inRegistry{client, name, ref}, name.Tag, nil
}

type inRegistry struct {
	client *registry.Client
	name   imagename.Name
	shown  string
}

func (r *inRegistry) String() string { return r.shown }

// Name returns the repository as images have it, such as "docker.io/library/app".
func (r *inRegistry) Name() string { return r.name.Name() }

func (r *inRegistry) at(tag string) string {
	n := r.name
	n.Tag = tag
	return n.String()
}

func (r *inRegistry) Get(ctx context.Context, tag string) ([]byte, error) {
	data, err := r.client.Manifest(ctx, r.at(tag))
	return data, absent(err)
}

// manifest implements imageRepository.
func (r *inRegistry) manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	n := r.name
	n.Tag, n.Digest = "", desc.Digest
	data, err := r.client.Manifest(ctx, n.String())
	return data, absent(err)
}

func (r *inRegistry) Set(ctx context.Context, tag, mediaType string, data []byte) error {
	return r.client.PutManifest(ctx, r.at(tag), mediaType, data)
}

func (r *inRegistry) Tags(ctx context.Context, prefix string) ([]string, error) {
	return r.client.Tags(ctx, r.name.String(), prefix)
}

func (r *inRegistry) Remove(ctx context.Context, _ string, manifest digest.Digest) error {
	return absent(r.client.RemoveManifest(ctx, r.name.String(), manifest))
}

func (r *inRegistry) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	blob, err := r.client.Fetch(ctx, r.name.String(), desc)
	return blob, absent(err)
}

func (r *inRegistry) Put(ctx context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	return r.client.PutBlob(ctx, r.name.String(), desc, desc.MediaType == pack.Type, open)
}

// absent makes fs.ErrNotExist of what a registry does not have.
func absent(err error) error {
	if e, ok := errors.AsType[*registry.Error](err); ok && e.Kind == registry.NotFound {
		return &fs.PathError{Op: e.Op, Path: e.Ref, Err: fs.ErrNotExist}
	}
	return err
}
