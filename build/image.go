package build

import (
	"context"
	"fmt"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/frontend/imageconfig"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver/execute"
)

// image describes the result for one platform to the exporter.
func (j *Job) image(ctx context.Context, i int) (exporter.Image, error) {
	lowered, chain := &j.product.Images[i], j.chains[i]
	img := exporter.Image{Config: configOf(lowered), Platform: lowered.Platform.String()}

	bottom, below, err := j.bottom(ctx, lowered.Root)
	if err != nil {
		return img, err
	}
	for n, l := range chain.Layers() {
		if n < len(below) {
			img.Layers = append(img.Layers, j.baseLayer(bottom, below[n]))
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
	img.Inline = j.caches.Inline(ctx, lowered.Root, ids)
	times, err := j.times(ctx, img.Layers)
	if err != nil {
		return img, err
	}
	if j.product.Request == nil || imageconfig.Vertices(lowered.History) != len(img.Layers)-len(below) {
		img.Config.History = imageconfig.Complete(ConfigOf(lowered).History, madeBy(lowered.Root, times, len(below)))
		j.date(&img)
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
	if j.product.Epoch != nil {
		epoch := time.Unix(*j.product.Epoch, 0).UTC()
		img.Config.Created = &epoch
		for i := len(lowered.History) - 1; i >= 0 && lowered.History[i].Created == nil; i-- {
			img.Config.History[i].Created = &epoch
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

// date gives a configuration the time of the last entry of its history, or SOURCE_DATE_EPOCH.
func (j *Job) date(img *exporter.Image) {
	if n := len(img.Config.History); n > 0 {
		img.Config.Created = img.Config.History[n-1].Created
	}
	if j.product.Epoch != nil {
		epoch := time.Unix(*j.product.Epoch, 0).UTC()
		img.Config.Created = &epoch
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

// ImageOf returns an image of a root file system with a configuration from elsewhere, whose history may have any number of entries.
func ImageOf(root llb.Output, c *dockerspec.DockerOCIImage) frontend.Image {
	img := frontend.Image{
		Platform: llb.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant, OSVersion: c.OSVersion},
		Root:     root, Config: c.Config, Author: c.Author,
	}
	for _, h := range c.History {
		img.History = append(img.History, imageconfig.History{
			CreatedBy: h.CreatedBy, Comment: h.Comment, Author: h.Author, Empty: h.EmptyLayer, Created: h.Created,
		})
	}
	return img
}

// times returns when each layer was made; nil for those of images, whose history says so itself.
func (j *Job) times(ctx context.Context, layers []exporter.Layer) ([]*time.Time, error) {
	out := make([]*time.Time, len(layers))
	for i, l := range layers {
		if l.Image != nil {
			continue
		}
		t, err := j.caches.Created(ctx, l.ID)
		if err != nil {
			return nil, err
		}
		t = t.UTC()
		out[i] = &t
	}
	return out, nil
}

// bottom returns the image that a root is built on, and its layers.
func (j *Job) bottom(ctx context.Context, o llb.Output) (llb.Image, []execute.ImageLayer, error) {
	for base, ok := o.Base(); ok; base, ok = o.Base() {
		o = base
	}
	img, ok := o.Vertex.Op().(llb.Image)
	if !ok {
		return img, nil, nil
	}
	layers, err := j.bases.Layers(ctx, img)
	return img, layers, err
}

func (j *Job) baseLayer(img llb.Image, l execute.ImageLayer) exporter.Layer {
	return exporter.Layer{ID: layer.ID(l.DiffID.Encoded()), Image: &exporter.ImageLayer{
		Blob: l.Blob, DiffID: l.DiffID, Repository: j.bases.Repository(img),
		Fetch: func(ctx context.Context) error { return j.bases.Download(ctx, img, l.Blob) },
	}}
}
