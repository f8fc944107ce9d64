package images

import (
	"context"
	"slices"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/signature/attached"
	"github.com/kilnbuild/kiln/snapshot/blob"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push sends an image of the store to its registry, its layers compressed by gzip, and signs it with keys, if there are any.
func (set *Images) Push(ctx context.Context, name string, keys []*signing.PrivateKey, s *events.Stream) error {
	if _, err := set.root.Work(); err != nil {
		return err
	}
	img, err := set.lookup(ctx, name)
	if err != nil {
		return err
	}
	ref := img.Name
	if r, err := imagename.Parse(name); err == nil && r.String() == img.Name || ref == "" {
		ref = name
	}
	task := s.Task(llb.Place{}, "pushing "+ref)
	err = set.pushImage(events.With(ctx, task), img.Desc, ref, keys, task)
	task.Done(err)
	return err
}

func (set *Images) pushImage(ctx context.Context, desc ocispec.Descriptor, ref string, keys []*signing.PrivateKey, task *events.Task) (err error) {
	ctx, _, end := AskPush(ctx, set.client, []string{ref})
	defer func() { err = end(err) }()
	gzip, err := blob.ParseCompression("gzip", "")
	if err != nil {
		return err
	}
	if err := set.hold(desc); err != nil {
		return err
	}
	if desc, err = set.root.Blobs().Recompress(ctx, desc, gzip); err != nil {
		return err
	}
	task.Note("digest " + desc.Digest.String())
	return attached.Push(ctx, set.client, set.store, []string{ref}, desc, keys, registry.PushOptions{Progress: Uploads(task)}, task.Note)
}

// Repository returns the repository of an image's name, where its signatures are.
func (set *Images) Repository(name string) (attached.Repository, error) {
	ref, err := imagename.Parse(name)
	if err != nil {
		return attached.Repository{}, &input.Error{Err: err}
	}
	return attached.Repository{Client: set.client, Name: ref}, nil
}

// Pull brings an image for one platform into the store and gives it its name. The platform is that of the machine for "".
func (set *Images) Pull(ctx context.Context, name, platform string, s *events.Stream) error {
	ref, err := imagename.Parse(name)
	if err != nil {
		return &input.Error{Err: err}
	}
	want := llb.Host()
	if platform != "" {
		if want, err = llb.ParsePlatform(platform, want); err != nil {
			return &input.Error{Err: err}
		}
	}
	task := s.Task(llb.Place{}, "pulling "+ref.String())
	img, err := registry.Pull(events.With(ctx, task), Reporting{Source: set.client}, ref.String(), OCIPlatform(want), set.store)
	if err == nil {
		task.Note("digest " + img.Target.Digest.String())
		local := ref.String()
		if ref.Digest != "" && ref.Tag == "" {
			local = "" // an image that was asked for by digest has no name here
		}
		err = set.Name(img.Desc, slices.DeleteFunc([]string{local}, func(s string) bool { return s == "" }), task)
	}
	task.Done(err)
	return err
}

// Name gives an image of the store its names; one without any is listed all the same.
func (set *Images) Name(desc ocispec.Descriptor, names []string, task *events.Task) error {
	if len(names) == 0 {
		return set.store.Tag("", desc)
	}
	for _, name := range names {
		if err := set.store.Tag(name, desc); err != nil {
			return err
		}
		task.Note("naming to " + name)
	}
	return nil
}
