package images

import (
	"context"
	"fmt"
	"io"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// SaveOptions are options of Save. The zero value is valid.
type SaveOptions struct {
	// Platform chooses from images for several; "" keeps them whole.
	Platform string
	// OCI leaves out the manifest.json of docker save.
	OCI bool
}

// Save writes images to w as one tar, with their attestations unless a platform is chosen: an OCI image layout with, unless it is left out, the manifest.json of docker save. An image that
// several of the names mean is written once, with these names; one that is meant by its ID has no name there. Their layers have the
// compression that they have in the store. Nothing is written before all images were found whole.
func (set *Images) Save(ctx context.Context, w io.Writer, names []string, o SaveOptions) error {
	var all []exporter.Archived
	at := map[digest.Digest]int{}
	for _, name := range names {
		img, err := set.lookup(ctx, name)
		if err != nil {
			return err
		}
		a, err := set.assembled(img.Desc, name, o.Platform)
		if err != nil {
			return err
		}
		i, ok := at[a.Desc.Digest]
		if !ok {
			i = len(all)
			at[a.Desc.Digest] = i
			all = append(all, exporter.Archived{Assembled: a, Archive: exporter.Archive{DockerManifest: !o.OCI}})
		}
		if ref, err := imagename.Parse(name); err == nil && ref.String() == img.Name {
			all[i].Names = append(all[i].Names, img.Name)
		}
	}
	blobs := &exporter.Blobs{Store: set.store}
	return blobs.WriteArchive(ctx, w, all)
}

// assembled returns an image of the store, or that for a platform, all of whose blobs are there.
func (set *Images) assembled(desc ocispec.Descriptor, name, platform string) (*exporter.Assembled, error) {
	all, err := set.contents(desc)
	if err != nil {
		return nil, err
	}
	if platform != "" {
		if desc, err = set.choose(all, name, platform); err != nil {
			return nil, err
		}
		all = []ocispec.Descriptor{desc}
	}
	if err := set.hold(desc); err != nil {
		return nil, fmt.Errorf("save %s: %w", name, err)
	}
	a := &exporter.Assembled{Desc: desc}
	for _, d := range all {
		m, err := set.manifestAlone(d)
		if err != nil {
			return nil, err
		}
		into := &a.Manifests
		if !attestation.IsImage(d) {
			into = &a.Attestations
		}
		*into = append(*into, exporter.Manifest{Desc: d, Manifest: m})
	}
	return a, nil
}

// choose returns which of the manifests of an image is for a platform; "" is the host's.
func (set *Images) choose(all []ocispec.Descriptor, name, platform string) (ocispec.Descriptor, error) {
	want := llb.Host()
	if platform != "" {
		var err error
		if want, err = llb.ParsePlatform(platform, want); err != nil {
			return ocispec.Descriptor{}, &input.Error{Err: err}
		}
	}
	for i, d := range all {
		if d.Platform != nil || !attestation.IsImage(d) {
			continue
		}
		_, config, err := set.manifestOf(d)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		all[i].Platform = &config.Platform
	}
	fitting, _ := image.Choose(all, OCIPlatform(want))
	if len(fitting) == 0 {
		return ocispec.Descriptor{}, &image.PlatformError{Ref: name, Want: want.String(), Have: image.DescribePlatforms(all)}
	}
	return fitting[0], nil
}
