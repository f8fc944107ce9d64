package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/regularfile"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ManifestList is an index that is put together in the root directory before it is pushed, as docker manifest does.
type ManifestList struct {
	// Name is its name in full.
	Name string
	// Entries are its images in the order in which they were added.
	Entries []ListEntry
}

// ListEntry is an image of a ManifestList.
type ListEntry struct {
	// Ref is the name in full by which it was added; of an image that an index has, the index's with the image's digest.
	Ref string
	// Desc is what the index will say of it.
	Desc ocispec.Descriptor
}

// NoListError says that there is no ManifestList of a name.
type NoListError struct{ Name string }

func (e *NoListError) Error() string {
	return fmt.Sprintf("there is no manifest list %s; kiln manifest create makes one", e.Name)
}

// listName returns the name of a list in full.
func listName(name string) (string, error) {
	ref, err := imagename.Parse(name)
	if err == nil && ref.Digest != "" {
		err = fmt.Errorf("%s: the name of a manifest list has no digest", name)
	}
	if err != nil {
		return "", &input.Error{Err: err}
	}
	return ref.String(), nil
}

func (set *Images) listPath(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(set.root.Dir(), rootdir.Lists, hex.EncodeToString(sum[:]))
}

// ManifestList returns the manifest list of a name. The error is a *NoListError if there is none.
func (set *Images) ManifestList(name string) (*ManifestList, error) {
	full, err := listName(name)
	if err != nil {
		return nil, err
	}
	l, err := readList(set.listPath(full))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &NoListError{full}
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest list %s: %w", full, err)
	}
	return l, nil
}

func readList(path string) (*ManifestList, error) {
	data, err := regularfile.Read(path, cas.MaxManifest)
	if err != nil {
		return nil, err
	}
	l := &ManifestList{}
	if json.Unmarshal(data, l) != nil || l.Name == "" {
		return nil, errors.New("it is not a manifest list")
	}
	for _, e := range l.Entries {
		if _, err := cas.ParseDigest(string(e.Desc.Digest)); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (set *Images) writeList(l *ManifestList) error {
	w, err := set.root.Work()
	if err != nil {
		return err
	}
	data, err := json.Marshal(l)
	if err == nil && len(data) > cas.MaxManifest {
		err = fmt.Errorf("manifest list %s has more than %d MiB", l.Name, cas.MaxManifest>>20)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Join(set.root.Dir(), rootdir.Lists), 0o700)
	}
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(set.listPath(l.Name), w.Scratch.Path(), data)
}

// CreateList makes a manifest list of images in registries, or with amend adds them to one that may be there. Of a source that is an index
// it takes the images. Nothing is pushed.
func (set *Images) CreateList(ctx context.Context, name string, sources []string, amend bool) (*ManifestList, error) {
	full, err := listName(name)
	if err != nil {
		return nil, err
	}
	l, err := set.ManifestList(full)
	switch {
	case errors.As(err, new(*NoListError)):
		l = &ManifestList{Name: full}
	case err != nil:
		return nil, err
	case !amend:
		return nil, &input.Error{Err: fmt.Errorf("there is a manifest list %s: --amend adds to it, and kiln manifest rm removes it", full)}
	}
	for _, source := range sources {
		r, err := set.Remote(ctx, source)
		if err != nil {
			return nil, err
		}
		for _, e := range r.Entries() {
			if e.Desc.Platform == nil {
				if e.Desc.Platform, err = set.remotePlatform(ctx, e); err != nil {
					return nil, err
				}
			}
			l.Entries = slices.DeleteFunc(l.Entries, func(old ListEntry) bool { return old.Ref == e.Ref || old.Desc.Digest == e.Desc.Digest })
			l.Entries = append(l.Entries, e)
		}
	}
	return l, set.writeList(l)
}

// Entries returns the images that an index has, or the image itself.
func (r *Remote) Entries() []ListEntry {
	ref, err := imagename.Parse(r.Name)
	if r.Manifests == nil || err != nil {
		return []ListEntry{{r.Name, r.Desc}}
	}
	entries := []ListEntry{}
	for _, d := range r.Manifests {
		ref.Digest = d.Digest
		entries = append(entries, ListEntry{ref.String(), d})
	}
	return entries
}

// RemoteEntry reads the manifest of an entry in its registry.
func (set *Images) RemoteEntry(ctx context.Context, e ListEntry) (*Remote, error) {
	ref, err := e.name()
	if err != nil {
		return nil, err
	}
	return set.Remote(ctx, ref.String())
}

// remotePlatform reads which platform an image in a registry is for; the zero value where it does not say so.
func (set *Images) remotePlatform(ctx context.Context, e ListEntry) (*ocispec.Platform, error) {
	r, err := set.RemoteEntry(ctx, e)
	if err != nil {
		return nil, err
	}
	doc, err := image.Parse(r.Data, r.Desc.MediaType)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Ref, err)
	}
	if doc.Manifest == nil {
		return nil, fmt.Errorf("%s: it has an index in an index", e.Ref)
	}
	config, err := image.ReadBlob(ctx, set.client, r.Name, doc.Manifest.Config)
	if err != nil {
		return nil, err
	}
	p := &ocispec.Platform{}
	if err := json.Unmarshal(config, p); err != nil {
		return nil, fmt.Errorf("%s: read its configuration: %w", e.Ref, err)
	}
	return p, nil
}

// name is the image by its digest.
func (e ListEntry) name() (imagename.Name, error) {
	ref, err := imagename.Parse(e.Ref)
	ref.Tag, ref.Digest = "", e.Desc.Digest
	return ref, err
}

// Annotate changes what a manifest list says of the platform of one of its images, which is named as when it was added, or by its digest.
// Empty fields of p stay as they are.
func (set *Images) Annotate(name, of string, p ocispec.Platform) error {
	l, err := set.ManifestList(name)
	if err != nil {
		return err
	}
	e, err := l.Find(of)
	if err != nil {
		return err
	}
	if e.Desc.Platform == nil {
		e.Desc.Platform = &ocispec.Platform{}
	}
	for _, field := range []struct{ to, value *string }{
		{&e.Desc.Platform.OS, &p.OS}, {&e.Desc.Platform.Architecture, &p.Architecture}, {&e.Desc.Platform.Variant, &p.Variant},
		{&e.Desc.Platform.OSVersion, &p.OSVersion},
	} {
		if *field.value != "" {
			*field.to = *field.value
		}
	}
	if len(p.OSFeatures) > 0 {
		e.Desc.Platform.OSFeatures = p.OSFeatures
	}
	return set.writeList(l)
}

// Find returns an entry by its name or digest. The error is an *input.Error if there is none.
func (l *ManifestList) Find(of string) (*ListEntry, error) {
	full := of
	if ref, err := imagename.Parse(of); err == nil {
		full = ref.String()
	}
	for i, e := range l.Entries {
		if e.Ref == full || string(e.Desc.Digest) == of {
			return &l.Entries[i], nil
		}
	}
	return nil, &input.Error{Err: fmt.Errorf("the manifest list %s has no image %s", l.Name, of)}
}

// Index returns what the list will be in its registry.
func (l *ManifestList) Index() ([]byte, error) {
	c := &composer{list: []ocispec.Descriptor{}}
	for _, e := range l.Entries {
		c.list = append(c.list, e.Desc)
	}
	_, data, err := c.index(nil)
	return data, err
}

// PushList pushes a manifest list to the registry of its name, and what that registry lacks of its images. It returns the digest.
func (set *Images) PushList(ctx context.Context, name string, s *events.Stream) (digest.Digest, error) {
	l, err := set.ManifestList(name)
	if err != nil {
		return "", err
	}
	c := set.composer(ctx)
	for _, e := range l.Entries {
		ref, err := e.name()
		if err != nil {
			return "", err
		}
		if p := e.Desc.Platform; p == nil || p.OS == "" || p.Architecture == "" {
			return "", &input.Error{Err: fmt.Errorf("%s does not say which platform it is for: kiln manifest annotate %s %s --os OS --arch ARCH",
				e.Ref, l.Name, e.Ref)}
		}
		_, data, err := set.client.Document(ctx, ref.String(), set.store)
		if err == nil {
			err = c.manifest(ref, e.Desc, data, 0)
		}
		if err != nil {
			return "", err
		}
	}
	if len(c.list) == 0 {
		return "", &input.Error{Err: fmt.Errorf("the manifest list %s is empty", l.Name)}
	}
	desc, data, err := c.index(nil)
	if err != nil {
		return "", err
	}
	c.documents[desc.Digest] = data
	return desc.Digest, c.push(l.Name, desc, s)
}

// RemoveList removes a manifest list. What was pushed stays.
func (set *Images) RemoveList(name string) error {
	full, err := listName(name)
	if err != nil {
		return err
	}
	err = os.Remove(set.listPath(full))
	if errors.Is(err, fs.ErrNotExist) {
		return &NoListError{full}
	}
	return err
}
