package images

import (
	"context"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Inspected is an image for one platform, in the form of docker image inspect.
type Inspected struct {
	ID          string `json:"Id"`
	RepoTags    []string
	RepoDigests []string
	// Created is a time of RFC 3339; "" where the image has none.
	Created      string `json:",omitempty"`
	Author       string `json:",omitempty"`
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	Size         int64
	RootFS       struct {
		Type   string
		Layers []string
	}
	Config     dockerspec.DockerOCIImageConfig
	Descriptor ocispec.Descriptor
	Manifest   ocispec.Descriptor
	History    []ocispec.History
}

// Inspect describes an image, with an element for each platform.
func (set *Images) Inspect(ctx context.Context, name string) ([]Inspected, error) {
	img, err := set.lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	infos, err := set.List(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(infos, func(x Info) bool { return x.Digest == img.Desc.Digest.String() })
	if i < 0 {
		return nil, &cas.NotFoundError{Ref: name}
	}
	all, err := set.manifests(img.Desc)
	if err != nil {
		return nil, err
	}
	var out []Inspected
	for _, d := range all {
		m, config, err := set.manifestOf(d)
		if err != nil {
			return nil, err
		}
		e := Inspected{
			ID: m.Config.Digest.String(), RepoTags: append([]string{}, infos[i].Names...), RepoDigests: []string{}, Author: config.Author, Architecture: config.Architecture,
			Variant: config.Variant, Os: config.OS, Config: config.Config, Descriptor: img.Desc, Manifest: d, History: config.History,
		}
		if config.Created != nil {
			e.Created = config.Created.Format(time.RFC3339Nano)
		}
		for _, n := range infos[i].Names {
			if ref, err := imagename.Parse(n); err == nil {
				e.RepoDigests = append(e.RepoDigests, ref.Name()+"@"+img.Desc.Digest.String())
			}
		}
		e.RootFS.Type, e.RootFS.Layers = "layers", []string{}
		for _, id := range config.RootFS.DiffIDs {
			e.RootFS.Layers = append(e.RootFS.Layers, id.String())
		}
		for _, l := range m.Layers {
			e.Size += l.Size
		}
		out = append(out, e)
	}
	return out, nil
}
