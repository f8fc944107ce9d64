// Package imaging describes what a build has made to the exporter, as images: with their layers, and with a configuration whose history
// says how each of them came to be.
package imaging

import (
	"context"
	"fmt"
	"reflect"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/frontend/imageconfig"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/blob"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
)

// Bases are the images that a build starts from.
type Bases interface {
	Layers(ctx context.Context, img llb.Image) ([]execute.ImageLayer, error)
	Download(ctx context.Context, img llb.Image, blob ocispec.Descriptor) error
	// Repository returns where the registry of an image has its layers; "" for one that is in none.
	Repository(img llb.Image) string
}

// Caches know when layers were made, and write inline caches.
type Caches interface {
	Created(ctx context.Context, id layer.ID) (time.Time, error)
	Inline(ctx context.Context, root llb.Output, layers []layer.ID) func(blob.Encoding) ([]byte, error)
}

// Imager describes images.
type Imager struct {
	Bases  Bases
	Caches Caches
}

// Image describes an image whose root file system is the chain. dockerfile says that it is as kiln's frontend has lowered it, so that each
// vertex from the base to the root has its entry in the history. epoch is SOURCE_DATE_EPOCH in Unix seconds; nil for none.
func (m *Imager) Image(
	ctx context.Context, lowered *frontend.Image, chain solver.Ref, dockerfile bool, epoch *int64,
) (exporter.Image, error) {
	img := exporter.Image{Config: configOf(lowered), Platform: lowered.Platform.String()}

	bottom, below, err := m.bottom(ctx, lowered.Root)
	if err != nil {
		return img, err
	}
	for n, l := range chain.Layers() {
		if n < len(below) {
			img.Layers = append(img.Layers, m.baseLayer(bottom, below[n]))
		} else {
			img.Layers = append(img.Layers, exporter.Layer{ID: layer.ID(l.ID)})
		}
	}
	ids := make([]layer.ID, len(img.Layers))
	for n, l := range img.Layers {
		if l.Image == nil {
			ids[n] = l.ID
		}
	}
	img.Inline = m.Caches.Inline(ctx, lowered.Root, ids)
	times, err := m.times(ctx, img.Layers)
	if err != nil {
		return img, err
	}
	if !dockerfile || imageconfig.Vertices(lowered.History) != len(img.Layers)-len(below) {
		img.Config.History = imageconfig.Complete(ConfigOf(lowered).History, madeBy(lowered.Root, times, len(below)))
		date(&img, lowered, epoch)
		return img, nil
	}
	n := len(below)
	var last *time.Time
	for _, h := range lowered.History {
		entry := ocispec.History{CreatedBy: h.CreatedBy, Comment: h.Comment, Author: h.Author, EmptyLayer: h.Empty, Created: h.Created}
		if h.Vertex != nil {
			entry.Created = times[n]
			n++
		}
		if entry.Created == nil {
			entry.Created = last
		}
		last = entry.Created
		img.Config.History = append(img.Config.History, entry)
	}
	// An entry before the first layer was made no later than that.
	for i := len(img.Config.History) - 2; i >= 0; i-- {
		if h := img.Config.History; h[i].Created == nil && h[i].Comment != "" {
			h[i].Created = h[i+1].Created
		}
	}
	img.Config.Created = last
	if epoch != nil {
		at := time.Unix(*epoch, 0).UTC()
		img.Config.Created = &at
		for i := len(lowered.History) - 1; i >= 0 && lowered.History[i].Created == nil; i-- {
			img.Config.History[i].Created = &at
		}
	}
	if n != len(img.Layers) {
		return img, fmt.Errorf("BUG: the history names %d layers, and there are %d", n, len(img.Layers))
	}
	return img, nil
}

// madeBy returns how the layers of an image came to be that no Dockerfile describes.
func madeBy(root llb.Output, times []*time.Time, below int) []imageconfig.Made {
	made := make([]imageconfig.Made, len(times))
	for i, at := range times {
		made[i].At = at
	}
	for i, o := len(times)-1, root; i >= below; i-- {
		made[i].By = o.Vertex.Meta().Text
		var ok bool
		if o, ok = o.Base(); !ok {
			break
		}
	}
	return made
}

// date gives a configuration the time of the last entry of its history, unless there is an epoch, which is also the latest time that an
// entry can have which is not the base image's.
func date(img *exporter.Image, lowered *frontend.Image, epoch *int64) {
	history := img.Config.History
	if n := len(history); n > 0 {
		img.Config.Created = history[n-1].Created
	}
	if epoch == nil {
		return
	}
	at := time.Unix(*epoch, 0).UTC()
	img.Config.Created = &at
	for i := range history {
		ofBase := i < len(lowered.History) && lowered.History[i].Base
		if !ofBase && (history[i].Created == nil || history[i].Created.After(at)) {
			history[i].Created = &at
		}
	}
}

// configOf returns the configuration of an image without its history.
func configOf(img *frontend.Image) dockerspec.DockerOCIImage {
	c := dockerspec.DockerOCIImage{Config: img.Config}
	p := img.Platform
	c.Architecture, c.OS, c.Variant, c.OSVersion, c.Author = p.Architecture, p.OS, p.Variant, p.OSVersion, img.Author
	return c
}

// ConfigOf returns the configuration of an image before it is exported: without layers, and without the times of what was not there before.
func ConfigOf(img *frontend.Image) dockerspec.DockerOCIImage {
	c := configOf(img)
	for _, h := range img.History {
		c.History = append(c.History, ocispec.History{
			CreatedBy: h.CreatedBy, Comment: h.Comment, Author: h.Author, EmptyLayer: h.Empty, Created: h.Created,
		})
	}
	return c
}

// ImageOf returns an image of a root file system with a configuration from elsewhere, whose history may have any number of entries. base is
// the configuration of its base image; nil if it is not known.
func ImageOf(root llb.Output, c, base *dockerspec.DockerOCIImage) frontend.Image {
	img := frontend.Image{
		Platform: llb.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant, OSVersion: c.OSVersion},
		Root:     root, Config: c.Config, Author: c.Author,
	}
	ofBase := base != nil
	for i, h := range c.History {
		ofBase = ofBase && i < len(base.History) && reflect.DeepEqual(h, base.History[i])
		img.History = append(img.History, imageconfig.History{
			CreatedBy: h.CreatedBy, Comment: h.Comment, Author: h.Author, Empty: h.EmptyLayer, Created: h.Created, Base: ofBase,
		})
	}
	return img
}

// times returns when each layer was made; nil for those of images, whose history says so itself.
func (m *Imager) times(ctx context.Context, layers []exporter.Layer) ([]*time.Time, error) {
	out := make([]*time.Time, len(layers))
	for i, l := range layers {
		if l.Image != nil {
			continue
		}
		t, err := m.Caches.Created(ctx, l.ID)
		if err != nil {
			return nil, err
		}
		t = t.UTC()
		out[i] = &t
	}
	return out, nil
}

// bottom returns the image that a root is built on, and its layers.
func (m *Imager) bottom(ctx context.Context, o llb.Output) (llb.Image, []execute.ImageLayer, error) {
	for base, ok := o.Base(); ok; base, ok = o.Base() {
		o = base
	}
	img, ok := o.Vertex.Op().(llb.Image)
	if !ok {
		return img, nil, nil
	}
	layers, err := m.Bases.Layers(ctx, img)
	return img, layers, err
}

func (m *Imager) baseLayer(img llb.Image, l execute.ImageLayer) exporter.Layer {
	return exporter.Layer{ID: layer.ID(l.DiffID.Encoded()), Image: &exporter.ImageLayer{
		Blob: l.Blob, DiffID: l.DiffID, Repository: m.Bases.Repository(img),
		Fetch: func(ctx context.Context) error { return m.Bases.Download(ctx, img, l.Blob) },
	}}
}
