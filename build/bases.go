package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/registry/layout"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/store/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// bases finds the images that a build starts from, and their layers. It implements frontend.Resolver and execute.Images.
type bases struct {
	store  *cas.Store
	client *registry.Client
	events *events.Stream
	pull   bool

	mu      sync.Mutex
	found   map[string]base // by manifest digest
	layouts map[string]*layout.Layout
}

// base is an image that was resolved.
type base struct {
	image  *image.Image
	source image.Source
	ref    string
	task   *events.Task // of its vertex; nil before that is solved
}

func newBases(store *cas.Store, client *registry.Client, pull bool, s *events.Stream) *bases {
	return &bases{store: store, client: client, events: s, pull: pull, found: map[string]base{}, layouts: map[string]*layout.Layout{}}
}

// Close closes the layouts that were opened.
func (b *bases) Close() {
	for _, l := range b.layouts {
		l.Close()
	}
}

// ResolveImage implements frontend.Resolver. An image of the local store comes before one of a registry, unless the build
// was asked to pull.
func (b *bases) ResolveImage(ctx context.Context, req frontend.ImageRequest) (*frontend.BaseImage, error) {
	task := b.events.Task(req.Place, req.Text)
	found, err := b.resolve(events.With(ctx, task), req)
	task.Done(err)
	if err != nil {
		return nil, err
	}
	out := &frontend.BaseImage{Digest: found.image.Desc.Digest.String()}
	if err := json.Unmarshal(found.image.Config, &out.Config); err != nil {
		return nil, fmt.Errorf("read the config of %s: %w", found.ref, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.found[out.Digest]; !ok {
		b.found[out.Digest] = *found
	}
	return out, nil
}

func (b *bases) resolve(ctx context.Context, req frontend.ImageRequest) (*base, error) {
	platform := images.OCIPlatform(req.Platform)
	if req.Layout != "" {
		l, err := b.layout(req.Layout)
		if err != nil {
			return nil, err
		}
		img, err := l.Resolve(ctx, req.Ref, platform, b.store)
		return &base{image: img, source: l, ref: req.Ref}, err
	}
	if !b.pull {
		if local, err := b.store.Lookup(req.Ref); err == nil && local.Name == req.Ref {
			l, err := b.layout(b.store.Root())
			if err != nil {
				return nil, err
			}
			img, err := l.Resolve(ctx, local.Desc.Digest.String(), platform, b.store)
			var other *image.PlatformError
			if !errors.As(err, &other) {
				if err == nil {
					b.hold(img)
				}
				return &base{image: img, source: l, ref: req.Ref}, err
			}
		}
	}
	img, err := b.client.Resolve(ctx, req.Ref, platform, b.store)
	return &base{image: img, source: b.client, ref: req.Ref}, err
}

// hold keeps others from pruning the layers of an image of the local store. One that is not there is missed when it is needed.
func (b *bases) hold(img *image.Image) {
	for _, l := range img.Manifest.Layers {
		b.store.Has(l)
	}
}

func (b *bases) layout(dir string) (*layout.Layout, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.layouts[dir]; l != nil {
		return l, nil
	}
	l, err := layout.Open(dir)
	if err == nil {
		b.layouts[dir] = l
	}
	return l, err
}

func (b *bases) get(op llb.Image) (base, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	found, ok := b.found[op.Digest]
	if !ok {
		return base{}, fmt.Errorf("BUG: image %s was not resolved", op.Ref)
	}
	return found, nil
}

// Layers implements execute.Images. Of two blobs with the same diff id only the first is ever unpacked, and so compared with
// it: that one then stands for both, and no image gets the other.
func (b *bases) Layers(ctx context.Context, op llb.Image) ([]execute.ImageLayer, error) {
	found, err := b.get(op)
	if err != nil {
		return nil, err
	}
	if found.task == nil { // else it is the export that asks
		found.task = events.From(ctx)
		b.mu.Lock()
		b.found[op.Digest] = found
		b.mu.Unlock()
	}
	layers := make([]execute.ImageLayer, len(found.image.DiffIDs))
	for i, d := range found.image.DiffIDs {
		first := slices.Index(found.image.DiffIDs, d)
		layers[i] = execute.ImageLayer{Blob: found.image.Manifest.Layers[first], DiffID: d, Windows: found.image.Platform.OS == "windows"}
	}
	return layers, nil
}

// Architecture implements execute.Images.
func (b *bases) Architecture(op llb.Image) string {
	found, err := b.get(op)
	if err != nil {
		return "" // whoever wants its layers says so
	}
	return found.image.Platform.Architecture
}

// Open implements execute.Images: a blob that is not in the store yet is brought there while it is read.
func (b *bases) Open(ctx context.Context, op llb.Image, l execute.ImageLayer) (io.ReadCloser, error) {
	found, err := b.get(op)
	if err != nil {
		return nil, err
	}
	if b.store.Has(l.Blob) {
		// Nothing comes down.
		events.From(ctx).Emit(events.Transfer{Name: l.Blob.Digest.String(), Phase: events.Extracting, Current: l.Blob.Size, Total: l.Blob.Size})
	}
	return registry.Stream(ctx, images.Reporting{Source: found.source}, found.ref, l.Blob, b.store)
}

// download brings a blob of an image into the store. That is reported at the image's vertex, for which the vertex of ctx waits.
func (b *bases) download(ctx context.Context, op llb.Image, blob ocispec.Descriptor) (err error) {
	if b.store.Has(blob) {
		return nil
	}
	found, err := b.get(op)
	if err != nil {
		return err
	}
	if found.task != nil {
		release, resume := found.task.Hold(), events.From(ctx).Wait(found.task)
		defer func() {
			release(err)
			resume()
		}()
		ctx = events.With(ctx, found.task)
	}
	return registry.Download(ctx, images.Reporting{Source: found.source}, found.ref, blob, b.store)
}

// repository returns the repository that an image came from, "" for one that is not of a registry.
func (b *bases) repository(op llb.Image) string {
	if op.Layout != "" {
		return ""
	}
	ref, err := imagename.Parse(op.Ref)
	if err != nil {
		return ""
	}
	return ref.Name()
}
