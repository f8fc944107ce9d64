package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImageInfo describes an image of the store.
type ImageInfo struct {
	// Names are its names in full; none for an image that has lost them.
	Names []string
	// ID is the digest of the config, or of the index for several platforms; Digest that of the manifest or index.
	ID     string
	Digest string
	// Created is what the config says; the zero time where it says nothing.
	Created time.Time
	// Size is that of the layers' blobs in bytes.
	Size int64
	// Platforms are what it runs on: "linux/amd64".
	Platforms []string
}

// manifestOf reads a manifest and its config.
func (b *Builder) manifestOf(desc ocispec.Descriptor) (m ocispec.Manifest, config dockerspec.DockerOCIImage, err error) {
	data, err := b.store.ReadAll(desc, 0)
	if err != nil {
		return m, config, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, config, fmt.Errorf("read manifest %s: %w", desc.Digest, err)
	}
	if data, err = b.store.ReadAll(m.Config, 0); err != nil {
		return m, config, err
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return m, config, fmt.Errorf("read config %s: %w", m.Config.Digest, err)
	}
	return m, config, nil
}

// manifests returns the image manifests of a manifest or index.
func (b *Builder) manifests(desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if !registry.IsIndex(desc.MediaType) {
		return []ocispec.Descriptor{desc}, nil
	}
	data, err := b.store.ReadAll(desc, 0)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("read index %s: %w", desc.Digest, err)
	}
	var out []ocispec.Descriptor
	for _, m := range index.Manifests {
		// An index that was pulled for one platform has only that.
		if registry.IsManifest(m.MediaType) && b.store.Has(m) {
			out = append(out, m)
		}
	}
	return out, nil
}

// hold keeps others from pruning the blobs of an image, if it should lose its names, before this process ends. It is an error
// if some are not there.
func (b *Builder) hold(desc ocispec.Descriptor) error {
	all, err := b.manifests(desc)
	if err != nil {
		return err
	}
	blobs := []ocispec.Descriptor{desc}
	for _, d := range all {
		m, _, err := b.manifestOf(d)
		if err != nil {
			return err
		}
		blobs = append(append(blobs, d, m.Config), m.Layers...)
	}
	for _, d := range blobs {
		if !b.store.Has(d) {
			return fmt.Errorf("the store has no blob %s of the image", d.Digest)
		}
	}
	return nil
}

// info describes an image without its names.
func (b *Builder) info(desc ocispec.Descriptor) (ImageInfo, error) {
	info := ImageInfo{Digest: desc.Digest.String(), ID: desc.Digest.String()}
	all, err := b.manifests(desc)
	if err != nil {
		return info, err
	}
	for _, d := range all {
		m, config, err := b.manifestOf(d)
		if err != nil {
			return info, err
		}
		if !registry.IsIndex(desc.MediaType) {
			info.ID = m.Config.Digest.String()
		}
		if config.Created != nil && config.Created.After(info.Created) {
			info.Created = *config.Created
		}
		for _, l := range m.Layers {
			info.Size += l.Size
		}
		p := llb.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}
		info.Platforms = append(info.Platforms, p.String())
	}
	return info, nil
}

// Images lists the store's images, the newest first.
func (b *Builder) Images(ctx context.Context) ([]ImageInfo, error) {
	all, err := b.store.Images()
	if err != nil {
		return nil, err
	}
	var out []ImageInfo
	byDigest := map[string]int{}
	for _, img := range all {
		if err := ctxio.Ended(ctx); err != nil {
			return nil, err
		}
		i, ok := byDigest[img.Desc.Digest.String()]
		if !ok {
			info, err := b.info(img.Desc)
			if err != nil {
				if _, lost := b.store.Lookup(img.Desc.Digest.String()); errors.As(lost, new(*cas.NotFoundError)) {
					continue // it was removed meanwhile
				}
				return nil, fmt.Errorf("image %s: %w", img.Name, err)
			}
			i = len(out)
			byDigest[info.Digest] = i
			out = append(out, info)
		}
		if img.Name != "" {
			out[i].Names = append(out[i].Names, img.Name)
		}
	}
	slices.SortStableFunc(out, func(x, y ImageInfo) int { return y.Created.Compare(x.Created) })
	return out, nil
}

// lookup finds an image of the store by a name, full or short, by its digest or its id, or by the first digits of these.
func (b *Builder) lookup(name string) (cas.Image, error) {
	if ref, err := registry.ParseReference(name); err == nil {
		if img, err := b.store.Lookup(ref.String()); err == nil {
			return img, nil
		}
	}
	img, err := b.store.Lookup(name)
	var missing *cas.NotFoundError
	if !errors.As(err, &missing) {
		return img, err
	}
	digits := strings.TrimPrefix(name, "sha256:")
	if len(digits) < 4 || strings.Trim(digits, "0123456789abcdef") != "" {
		return img, err
	}
	all, listErr := b.store.Images()
	if listErr != nil {
		return img, listErr
	}
	var found []cas.Image
	for _, candidate := range all {
		if err := ctxio.Ended(b.ctx); err != nil {
			return img, err
		}
		info, infoErr := b.info(candidate.Desc)
		if infoErr == nil && strings.HasPrefix(strings.TrimPrefix(info.ID, "sha256:"), digits) &&
			!slices.ContainsFunc(found, func(x cas.Image) bool { return x.Desc.Digest == candidate.Desc.Digest }) {
			found = append(found, candidate)
		}
	}
	switch len(found) {
	case 0:
		return img, err
	case 1:
		return found[0], nil
	}
	return img, fmt.Errorf("%d images have an id that begins with %s: give more digits", len(found), digits)
}

// Tag gives an image of the store a further name.
func (b *Builder) Tag(ctx context.Context, src, dst string) error {
	img, err := b.lookup(src)
	if err != nil {
		return err
	}
	ref, err := registry.ParseReference(dst)
	if err != nil {
		return &InputError{err}
	}
	if ref.Digest != "" {
		return &InputError{fmt.Errorf("tag %s: a name for an image has no digest", dst)}
	}
	if err := b.hold(img.Desc); err != nil {
		return fmt.Errorf("tag %s: %w", dst, err)
	}
	return b.store.Tag(ref.String(), img.Desc)
}

// Remove takes a name from an image. An id takes them all, and the image with them. Blobs and layers stay: they are the
// cache's.
func (b *Builder) Remove(ctx context.Context, name string) error {
	img, err := b.lookup(name)
	if err != nil {
		return err
	}
	if ref, err := registry.ParseReference(name); err == nil && ref.String() == img.Name {
		return b.store.Untag(img.Name)
	}
	return b.store.Drop(img.Desc)
}

// inspected is an image in the form of docker image inspect.
type inspected struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Created      *time.Time `json:",omitempty"`
	Author       string     `json:",omitempty"`
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

// Inspect returns a JSON array that describes an image, with an element for each platform, as docker image inspect does.
func (b *Builder) Inspect(ctx context.Context, name string) (json.RawMessage, error) {
	img, err := b.lookup(name)
	if err != nil {
		return nil, err
	}
	infos, err := b.Images(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(infos, func(x ImageInfo) bool { return x.Digest == img.Desc.Digest.String() })
	if i < 0 {
		return nil, &cas.NotFoundError{Ref: name}
	}
	all, err := b.manifests(img.Desc)
	if err != nil {
		return nil, err
	}
	out := []inspected{}
	for _, d := range all {
		m, config, err := b.manifestOf(d)
		if err != nil {
			return nil, err
		}
		e := inspected{
			ID: m.Config.Digest.String(), RepoTags: append([]string{}, infos[i].Names...), RepoDigests: []string{}, Created: config.Created, Author: config.Author, Architecture: config.Architecture,
			Variant: config.Variant, Os: config.OS, Config: config.Config, Descriptor: img.Desc, Manifest: d, History: config.History,
		}
		for _, n := range infos[i].Names {
			if ref, err := registry.ParseReference(n); err == nil {
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
	return json.MarshalIndent(out, "", "    ")
}

// Push sends an image of the store to its registry, its layers compressed by gzip.
func (b *Builder) Push(ctx context.Context, name string, s *events.Stream) error {
	if err := b.open(); err != nil {
		return err
	}
	img, err := b.lookup(name)
	if err != nil {
		return err
	}
	ref := img.Name
	if r, err := registry.ParseReference(name); err == nil && r.String() == img.Name || ref == "" {
		ref = name
	}
	task := s.Task(llb.Place{}, "pushing "+ref)
	err = b.pushImage(events.With(ctx, task), img.Desc, ref, task)
	task.Done(err)
	return err
}

func (b *Builder) pushImage(ctx context.Context, desc ocispec.Descriptor, ref string, task *events.Task) (err error) {
	ctx, _, end := b.mayPush(ctx, []string{ref})
	defer func() { err = end(err) }()
	gzip, err := exporter.ParseCompression("gzip", "")
	if err != nil {
		return err
	}
	if err := b.hold(desc); err != nil {
		return err
	}
	if desc, err = b.blobs().Recompress(ctx, desc, gzip); err != nil {
		return err
	}
	task.Note("digest " + desc.Digest.String())
	return b.client.Push(ctx, b.store, ref, desc, registry.PushOptions{Progress: uploads(task)})
}

// Pull brings an image for one platform into the store and gives it its name. The platform is that of the machine for "".
func (b *Builder) Pull(ctx context.Context, name, platform string, s *events.Stream) error {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return &InputError{err}
	}
	want := HostPlatform()
	if platform != "" {
		if want, err = llb.ParsePlatform(platform, want); err != nil {
			return &InputError{err}
		}
	}
	task := s.Task(llb.Place{}, "pulling "+ref.String())
	img, err := registry.Pull(events.With(ctx, task), reporting{b.client}, ref.String(), ociPlatform(want), b.store)
	if err == nil {
		task.Note("digest " + img.Target.Digest.String())
		local := ref.String()
		if ref.Digest != "" && ref.Tag == "" {
			local = "" // an image that was asked for by digest has no name here
		}
		err = b.tag(img.Desc, slices.DeleteFunc([]string{local}, func(s string) bool { return s == "" }), task)
	}
	task.Done(err)
	return err
}
