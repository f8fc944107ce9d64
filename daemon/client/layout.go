package client

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/registry/image"
	sessioncontent "github.com/moby/buildkit/session/content"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Store implements bases.Stores: it returns an OCI layout of the client. The session is as in Open.
func (c *Client) Store(ctx context.Context, session, name string) (image.Source, error) {
	if other, err := c.other(ctx, session); err != nil {
		return nil, err
	} else if other != c {
		return other.Store(ctx, "", name)
	}
	_, caller, err := c.call(ctx)
	if err != nil {
		return nil, err
	}
	return &layout{client: c, name: name, store: sessioncontent.NewCallerStore(caller, "oci:"+name)}, nil
}

// afterAt returns what is behind the last at sign, or all.
func afterAt(ref string) string { return ref[strings.LastIndexByte(ref, '@')+1:] }

// layout is an OCI layout of a client. It implements image.Source.
type layout struct {
	client *Client
	name   string
	store  content.Store
}

// Resolve implements image.Source. Clients look up tags themselves: ref is a digest, alone or behind an at sign.
func (l *layout) Resolve(ctx context.Context, ref string, platform ocispec.Platform, store *cas.Store) (*image.Image, error) {
	img, err := l.resolve(ctx, ref, platform, store)
	if err != nil {
		return nil, l.wrap(err)
	}
	return img, nil
}

func (l *layout) wrap(err error) error {
	return fmt.Errorf("read the OCI layout %q of the client: %w", l.name, err)
}

func (l *layout) resolve(ctx context.Context, ref string, platform ocispec.Platform, store *cas.Store) (*image.Image, error) {
	d, err := cas.ParseDigest(afterAt(ref))
	if err != nil {
		return nil, fmt.Errorf("%q has no digest: %w", ref, err)
	}
	info, err := l.store.Info(l.client.during(ctx), d)
	if err != nil {
		return nil, err
	}
	target := ocispec.Descriptor{Digest: d, Size: info.Size}
	data, declared, err := image.Fetched{Fetcher: l}.Document(ctx, target)
	if err != nil {
		return nil, err
	}
	named := image.Named{Ref: ref, Target: target, Data: data, Declared: declared}
	return image.Resolve(ctx, image.Fetched{Fetcher: l}, named, platform, store)
}

// FindBlob returns the descriptor of a blob, without a media type.
func (l *layout) FindBlob(ctx context.Context, _ string, d digest.Digest) (ocispec.Descriptor, error) {
	info, err := l.store.Info(l.client.during(ctx), d)
	if err != nil {
		return ocispec.Descriptor{}, l.wrap(err)
	}
	return ocispec.Descriptor{Digest: d, Size: info.Size}, nil
}

// Fetch implements image.Source.
func (l *layout) Fetch(ctx context.Context, _ string, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if _, err := cas.ParseDigest(string(desc.Digest)); err != nil {
		return nil, l.wrap(err)
	}
	r, err := openBlob(l.client.during(ctx), l.store, desc)
	if err != nil {
		return nil, l.wrap(err)
	}
	return r, nil
}

// openBlob opens a blob of a client's store.
func openBlob(calling context.Context, store content.Store, desc ocispec.Descriptor) (io.ReadCloser, error) {
	calling, cancel := context.WithCancel(calling)
	at, err := store.ReaderAt(calling, desc)
	if err != nil {
		cancel()
		return nil, failed(calling, err)
	}
	r := &blobReader{Reader: ctxio.Reader(calling, io.NewSectionReader(at, 0, desc.Size)), at: at, cancel: cancel}
	return cas.VerifyReader(r, desc, "the client"), nil
}

// blobReader is a blob of a client.
type blobReader struct {
	io.Reader
	at     io.Closer
	cancel context.CancelFunc
}

// Close ends the requests to the client.
func (b *blobReader) Close() error {
	b.cancel()
	return b.at.Close()
}
