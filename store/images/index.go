package images

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Remote is a manifest or index in a registry.
type Remote struct {
	// Name is its name in full.
	Name string
	Desc ocispec.Descriptor
	Data []byte
	// Manifests are what an index lists; nil for a manifest.
	Manifests []ocispec.Descriptor
}

// Remote reads the manifest or index that a name stands for in its registry.
func (set *Images) Remote(ctx context.Context, name string) (*Remote, error) {
	ref, err := imagename.Parse(name)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	desc, data, err := set.client.Document(ctx, ref.String(), set.store)
	if err != nil {
		return nil, err
	}
	doc, err := image.Parse(data, desc.MediaType)
	if err != nil {
		return nil, err
	}
	r := &Remote{Name: ref.String(), Desc: desc, Data: data}
	if doc.Index != nil {
		r.Manifests = append([]ocispec.Descriptor{}, doc.Index.Manifests...)
	}
	return r, nil
}

// IndexOptions are options of CreateIndex. The zero value is valid.
type IndexOptions struct {
	// Append keeps what the first name stands for now; a source for the same platform takes its place.
	Append bool
	// Annotations are those of the index.
	Annotations map[string]string
	// DryRun pushes nothing.
	DryRun bool
}

// CreateIndex makes an index of images in registries, each for a platform of its own, and pushes it under names. Of a source that is an
// index it takes the images. What the registries of the names lack is copied there, or mounted. One source alone, without annotations, is
// copied as it is. The result is what the names stand for then.
func (set *Images) CreateIndex(ctx context.Context, names, sources []string, o IndexOptions, s *events.Stream) ([]byte, error) {
	c := set.composer(ctx)
	var kept int
	if o.Append {
		if err := c.add(names[0], 0); err != nil {
			return nil, err
		}
		kept = len(c.list)
	}
	for _, name := range sources {
		if err := c.add(name, kept); err != nil {
			return nil, err
		}
	}
	desc, data := c.last.Desc, c.last.Data
	if len(sources) > 1 || o.Append || len(o.Annotations) > 0 {
		var err error
		if desc, data, err = c.index(o.Annotations); err != nil {
			return nil, err
		}
	}
	c.documents[desc.Digest] = data
	if o.DryRun {
		return data, nil
	}
	for _, name := range names {
		if err := c.push(name, desc, s); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// composer gathers the images of an index. It is a source of blobs for a push.
type composer struct {
	ctx  context.Context
	set  *Images
	list []ocispec.Descriptor
	last *Remote
	// documents are indexes and manifests, which are small; from is the repository that has a blob.
	documents map[digest.Digest][]byte
	from      map[digest.Digest]string
}

func (set *Images) composer(ctx context.Context) *composer {
	return &composer{ctx: ctx, set: set, documents: map[digest.Digest][]byte{}, from: map[digest.Digest]string{}}
}

// push pushes one of the documents under a name, after what it refers to.
func (c *composer) push(name string, desc ocispec.Descriptor, s *events.Stream) error {
	task := s.Task(llb.Place{}, "pushing "+name)
	err := c.set.client.Push(events.With(c.ctx, task), c, name, desc, registry.PushOptions{MountFrom: c.from, Progress: Uploads(task)})
	if err == nil {
		task.Note("digest " + desc.Digest.String())
	}
	task.Done(err)
	return err
}

// add takes in what a name stands for. The first kept images give way to others for their platform.
func (c *composer) add(name string, kept int) error {
	r, err := c.set.Remote(c.ctx, name)
	if err != nil {
		return err
	}
	ref, err := imagename.Parse(r.Name)
	if err != nil {
		return err
	}
	c.last, c.documents[r.Desc.Digest] = r, r.Data
	if r.Manifests == nil {
		return c.manifest(ref, r.Desc, r.Data, kept)
	}
	for _, d := range r.Manifests {
		ref.Tag, ref.Digest = "", d.Digest
		_, data, err := c.set.client.Document(c.ctx, ref.String(), c.set.store)
		if err == nil {
			err = c.manifest(ref, d, data, kept)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// manifest takes in one image of a repository.
func (c *composer) manifest(ref imagename.Name, desc ocispec.Descriptor, data []byte, kept int) error {
	doc, err := image.Parse(data, desc.MediaType)
	if err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	if doc.Manifest == nil {
		return fmt.Errorf("%s: it has an index in an index", ref)
	}
	c.documents[desc.Digest] = data
	for _, d := range append([]ocispec.Descriptor{doc.Manifest.Config}, doc.Manifest.Layers...) {
		c.from[d.Digest] = ref.Name()
	}
	if desc.Platform == nil {
		config, err := image.ReadBlob(c.ctx, c.set.client, ref.String(), doc.Manifest.Config)
		if err != nil {
			return err
		}
		desc.Platform = &ocispec.Platform{}
		if err := json.Unmarshal(config, desc.Platform); err != nil || desc.Platform.OS == "" {
			return fmt.Errorf("%s: its configuration does not say which platform it is for", ref)
		}
	}
	same := func(d ocispec.Descriptor) bool {
		return d.Digest == desc.Digest || desc.Platform.OS != "unknown" && image.PlatformName(*d.Platform) == image.PlatformName(*desc.Platform)
	}
	switch i := slices.IndexFunc(c.list, same); {
	case i < 0:
		c.list = append(c.list, desc)
	case c.list[i].Digest == desc.Digest:
	case i < kept:
		c.list[i] = desc
	default:
		return &input.Error{Err: fmt.Errorf("%s is for %s, as another of the images is", ref, image.PlatformName(*desc.Platform))}
	}
	return nil
}

// index makes the index of what was taken in. Attestations of an image that another one has taken the place of are left out.
func (c *composer) index(annotations map[string]string) (ocispec.Descriptor, []byte, error) {
	all := c.list
	c.list = slices.DeleteFunc(slices.Clone(all), func(d ocispec.Descriptor) bool {
		of, ok := attestation.Subject(d)
		return ok && !slices.ContainsFunc(all, func(d ocispec.Descriptor) bool { return d.Digest == of })
	})
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: c.list, Annotations: annotations}
	data, err := json.MarshalIndent(index, "", "  ")
	return ocispec.Descriptor{MediaType: index.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}, data, err
}

// Open implements registry.Blobs.
func (c *composer) Open(desc ocispec.Descriptor) (io.ReadCloser, error) {
	if data, ok := c.documents[desc.Digest]; ok {
		return cas.VerifyReader(io.NopCloser(bytes.NewReader(data)), desc, "the index"), nil
	}
	return c.set.client.Fetch(c.ctx, c.from[desc.Digest], desc)
}
