package attached

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/registry"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// UnsignedError is an image that was pushed and could not be signed, so it has no tag.
type UnsignedError struct {
	// Image is its name with its digest.
	Image string
	Err   error
}

func (e *UnsignedError) Error() string {
	return fmt.Sprintf("the image cannot be signed: %v; it is in the registry as %s, without a complete signature, and no tag was changed",
		e.Err, e.Image)
}

// Unwrap returns the cause.
func (e *UnsignedError) Unwrap() error { return e.Err }

// Push pushes an image under names, signed with keys if there are any. Then it is pushed by its digest and signed in each repository before
// any tag is put, so whoever finds the image by a tag finds it signed. note is told what is done. Errors are those of the registry, of a
// key and of blobs, or an *UnsignedError.
func Push(
	ctx context.Context, client *registry.Client, blobs registry.Blobs, names []string, desc ocispec.Descriptor, keys []*signing.PrivateKey,
	o registry.PushOptions, note func(string),
) error {
	if len(keys) == 0 {
		for _, name := range names {
			note("pushing layers")
			if err := client.Push(ctx, blobs, name, desc, o); err != nil {
				return err
			}
			note(manifestOf(name, desc.Digest))
		}
		return nil
	}
	var tags, signed []string
	for _, name := range names {
		ref, err := imagename.Parse(name)
		if err != nil {
			return err
		}
		if ref.Digest == "" {
			tags = append(tags, name)
		}
		r := Repository{Client: client, Name: ref}
		at := r.at("", desc.Digest)
		if slices.Contains(signed, at) {
			continue
		}
		signed = append(signed, at)
		note("pushing layers")
		if err := client.Push(ctx, blobs, at, desc, o); err != nil {
			return err
		}
		note(manifestOf(at, desc.Digest))
		note("signing " + at)
		if err := r.Sign(ctx, desc, blobs, keys); err != nil {
			return &UnsignedError{at, err}
		}
	}
	if len(tags) == 0 {
		return nil
	}
	data, err := read(desc, blobs, cas.MaxManifest)
	if err != nil {
		return err
	}
	for _, name := range tags {
		note("tagging " + name)
		if err := client.PutManifest(ctx, name, desc.MediaType, data); err != nil {
			return err
		}
	}
	return nil
}

// manifestOf says that the manifest was pushed which a name stands for now, as BuildKit says it.
func manifestOf(name string, d digest.Digest) string {
	if !strings.Contains(name, "@") {
		name += "@" + d.String()
	}
	return "pushing manifest for " + name
}
