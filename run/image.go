package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/store/images"
	"github.com/opencontainers/go-digest"
)

// find finds the image, and fetches it first where that is asked for.
func find(ctx context.Context, set *images.Images, o *Options, s *events.Stream) (f images.Found, err error) {
	if o.Pull != PullAlways {
		f, err = set.Find(ctx, o.Image, o.Platform)
		if err == nil || o.Pull == PullNever || !absent(err) {
			return f, err
		}
	}
	if _, nameErr := imagename.Parse(o.Image); nameErr != nil {
		if err == nil {
			err = &input.Error{Err: nameErr}
		}
		return f, err // it can only have been an ID
	}
	if err := set.Pull(ctx, o.Image, o.Platform, s); err != nil {
		return f, err
	}
	return set.Find(ctx, o.Image, o.Platform)
}

// absent reports whether an error says that the image, or that for the platform, is not in the store.
func absent(err error) bool {
	return errors.As(err, new(*cas.NotFoundError)) || errors.As(err, new(*image.PlatformError))
}

// source has the layers of one image, whose blobs are in the store. It implements execute.Images.
type source struct {
	store *cas.Store
	images.Found
}

// check returns an error unless the image can be run here as far as its config tells.
func (s *source) check(name string) error {
	if os := s.Config.OS; os != "" && os != "linux" {
		return &input.Error{Err: fmt.Errorf("%s is an image for %s, and kiln runs those for linux", name, quote(os))}
	}
	if l, d := len(s.Manifest.Layers), len(s.Config.RootFS.DiffIDs); l != d {
		return fmt.Errorf("%s has %d layers and %d diff IDs", name, l, d)
	}
	for _, d := range s.Config.RootFS.DiffIDs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return fmt.Errorf("%s has an invalid diff ID %s", name, quote(string(d)))
		}
	}
	return nil
}

// Layers implements execute.Images.
func (s *source) Layers(context.Context, llb.Image) ([]execute.ImageLayer, error) {
	first := map[digest.Digest]int{}
	layers := make([]execute.ImageLayer, len(s.Config.RootFS.DiffIDs))
	for i, d := range s.Config.RootFS.DiffIDs {
		if _, ok := first[d]; !ok {
			first[d] = i
		}
		layers[i] = execute.ImageLayer{Blob: s.Manifest.Layers[first[d]], DiffID: d}
	}
	return layers, nil
}

// Architecture implements execute.Images.
func (s *source) Architecture(llb.Image) string { return s.Config.Architecture }

// Open implements execute.Images.
func (s *source) Open(_ context.Context, _ llb.Image, l execute.ImageLayer) (io.ReadCloser, error) {
	return s.store.Open(l.Blob)
}

// root returns the root file system of an image. Layers that a build has made are taken as they are; what has to be unpacked is reported.
func (c *Container) root(ctx context.Context, op llb.Image, img *source, s *events.Stream) (root solver.Ref, err error) {
	var absent []digest.Digest
	for _, d := range img.Config.RootFS.DiffIDs {
		if err := c.layers.Open(ctx, layer.ID(d.Encoded())); err != nil && !slices.Contains(absent, d) {
			absent = append(absent, d)
		}
	}
	made, err := c.layers.Made(ctx, absent)
	if err != nil {
		return root, err
	}
	if len(made) < len(absent) {
		task := s.Task(llb.Place{}, "unpacking "+op.Ref)
		c.unpacked = func(err error) { task.Done(err) }
		ctx = events.With(ctx, task)
	}
	whole, err := c.job.Image(ctx, op)
	if err != nil {
		return root, err
	}
	for _, l := range whole.Layers() {
		if id, ok := made[digest.NewDigestFromEncoded(digest.SHA256, l.ID)]; ok {
			m, err := c.layers.Manifest(ctx, id)
			if err != nil {
				return root, err
			}
			l.ID, l.Content = string(id), m.Content
		}
		root = root.Push(solver.Layer{ID: l.ID, Content: l.Content})
	}
	return root, nil
}
