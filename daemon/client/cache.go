package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	sessioncontent "github.com/moby/buildkit/session/content"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/internal/cas"
)

// Cache is a cache in a directory of the client, which is written and read by its session. Clients look up and set tags themselves: they
// tell the digest of what is imported, and are told the descriptor of what is exported. It implements remote.Repository and remote.Swapper.
type Cache struct {
	client *Client
	dir    string

	mu sync.Mutex
	// exported is the manifest that was put; its digest is "" before.
	exported ocispec.Descriptor
	data     []byte
}

// Cache returns the cache in a directory as the client calls it.
func (c *Client) Cache(dir string) *Cache { return &Cache{client: c, dir: dir} }

// Exported returns the manifest that was put, as the client wants to be told; "" for none.
func (c *Cache) Exported() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exported.Digest == "" {
		return "", nil
	}
	data, err := json.Marshal(c.exported)
	return string(data), err
}

func (c *Cache) String() string { return c.dir }

// store returns the client's content store, and the context for requests to it.
func (c *Cache) store(ctx context.Context) (context.Context, content.Store, error) {
	calling, caller, err := c.client.call(ctx)
	if err != nil {
		return nil, nil, err
	}
	return calling, sessioncontent.NewCallerStore(caller, "local:"+c.dir), nil
}

// fail returns an error of the client's.
func (c *Cache) fail(calling context.Context, err error) error {
	if errdefs.IsNotFound(err) {
		return &fs.PathError{Op: "read", Path: c.dir, Err: fs.ErrNotExist}
	}
	return fmt.Errorf("the directory %s of the client: %w", c.dir, failed(calling, err))
}

// maxCacheManifest bounds the manifest of a cache, in bytes.
const maxCacheManifest = 4 << 20

// Get implements remote.Repository. A tag is the digest that the client has looked up; there is nothing under any other.
func (c *Cache) Get(ctx context.Context, tag string) ([]byte, error) {
	c.mu.Lock()
	if c.data != nil {
		defer c.mu.Unlock()
		return c.data, nil
	}
	c.mu.Unlock()
	d, err := cas.ParseDigest(tag)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: c.dir, Err: fs.ErrNotExist}
	}
	calling, store, err := c.store(ctx)
	if err != nil {
		return nil, err
	}
	info, err := store.Info(calling, d)
	if err != nil {
		return nil, c.fail(calling, err)
	}
	if info.Size > maxCacheManifest {
		return nil, fmt.Errorf("the manifest of the cache in %s has %d bytes; %d are allowed", c.dir, info.Size, maxCacheManifest)
	}
	desc := ocispec.Descriptor{Digest: d, Size: info.Size}
	r, err := c.Open(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return cas.ReadAll(r, desc, 0)
}

// Set implements remote.Repository.
func (c *Cache) Set(ctx context.Context, _, mediaType string, data []byte) error {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	err := c.Put(ctx, desc, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.exported, c.data = desc, data
	return nil
}

// Swap implements remote.Swapper. Nobody else writes: what the client tags at the end is the only manifest of this build.
func (c *Cache) Swap(ctx context.Context, tag, mediaType string, _ digest.Digest, data []byte) error {
	return c.Set(ctx, tag, mediaType, data)
}

// Tags implements remote.Repository.
func (c *Cache) Tags(context.Context, string) ([]string, error) { return nil, nil }

// Remove implements remote.Repository.
func (c *Cache) Remove(context.Context, string, digest.Digest) error { return errors.ErrUnsupported }

// Open implements remote.Repository.
func (c *Cache) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if _, err := cas.ParseDigest(string(desc.Digest)); err != nil {
		return nil, err
	}
	calling, store, err := c.store(ctx)
	if err != nil {
		return nil, err
	}
	r, err := openBlob(calling, store, desc)
	if err != nil {
		return nil, c.fail(calling, err)
	}
	return r, nil
}

// Put implements remote.Repository.
func (c *Cache) Put(ctx context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	calling, store, err := c.store(ctx)
	if err != nil {
		return err
	}
	err = writeBlob(calling, store, desc, func(ocispec.Descriptor) (io.ReadCloser, error) { return open() })
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return c.fail(calling, err)
	}
	return nil
}

var _ remote.Swapper = (*Cache)(nil)
