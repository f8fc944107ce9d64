package cas

import (
	"context"
	"fmt"
	"iter"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobsPart are the images without a name, and the blobs of no image.
type blobsPart struct {
	store *Store
	trash string
	named *Named
	// own are the blobs of each image that Items listed, its manifest first, which no image with a name has.
	own map[string][]digest.Digest
	// listed are the blobs that the list of images reached when it was index.
	listed *Reached
	index  string
}

// Part returns the images and blobs as a part of the root directory, of which named are no items. What is removed goes through the
// directory trash.
func (s *Store) Part(trash string, named *Named) part.Part {
	return &blobsPart{store: s, trash: trash, named: named, own: map[string][]digest.Digest{}}
}

// Name implements part.Part.
func (p *blobsPart) Name() string { return "blobs and images" }

// diskSize returns what a blob takes on disk in bytes, 0 if it is not there.
func (s *Store) diskSize(d digest.Digest) int64 {
	var it part.Item
	if path, err := s.Path(d); err == nil {
		it.Measure(path)
	}
	return it.Size
}

// Items implements part.Part. A blob that several images without a name have is counted with the first.
func (p *blobsPart) Items(ctx context.Context) iter.Seq2[part.Item, error] {
	return func(yield func(part.Item, error) bool) {
		items, err := p.items(ctx)
		if err != nil {
			yield(part.Item{}, err)
			return
		}
		for _, it := range items {
			if !yield(it, nil) {
				return
			}
		}
	}
}

func (p *blobsPart) items(ctx context.Context) ([]part.Item, error) {
	images, err := p.store.Images()
	if err != nil {
		return nil, err
	}
	blobs, err := p.unnamed(ctx)
	if err != nil {
		return nil, err
	}
	var items []part.Item
	counted := map[digest.Digest]bool{}
	for _, img := range images {
		if err := ctxio.Ended(ctx); err != nil {
			return nil, err
		}
		manifest, ok := blobs[img.Desc.Digest]
		if img.Name != "" || !ok {
			continue
		}
		own := newReached()
		p.store.reach(own, img.Desc)
		it := part.Item{Kind: part.Image, ID: img.Desc.Digest.String(), Used: manifest.Used}
		p.own[it.ID] = []digest.Digest{img.Desc.Digest}
		for d := range own.Blobs {
			blob, ok := blobs[d]
			if !ok {
				continue
			}
			if d != img.Desc.Digest {
				p.own[it.ID] = append(p.own[it.ID], d)
			}
			if !counted[d] {
				it.Size += blob.Size
				counted[d] = true
			}
		}
		items = append(items, it)
	}
	for d, it := range blobs {
		if !counted[d] {
			items = append(items, it)
		}
	}
	return items, nil
}

// unnamed returns the blobs that no image with a name has.
func (p *blobsPart) unnamed(ctx context.Context) (map[digest.Digest]part.Item, error) {
	blobs := map[digest.Digest]part.Item{}
	err := p.store.Blobs(func(d digest.Digest, _ int64) error {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		path, err := p.store.Path(d)
		if err != nil {
			return err
		}
		if it := (part.Item{Kind: part.Blob, ID: d.String()}); it.Measure(path) {
			blobs[d] = it
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for d := range p.named.Blobs {
		delete(blobs, d)
	}
	return blobs, nil
}

// InUse implements part.Part.
func (p *blobsPart) InUse(it part.Item) bool {
	path, err := p.store.Path(digest.Digest(it.ID))
	return err == nil && lease.InUse(path)
}

// Remove implements part.Part. Of an image it removes the blobs that no other image has.
func (p *blobsPart) Remove(it part.Item) (bool, error) {
	if it.Kind == part.Blob {
		return p.remove([]digest.Digest{digest.Digest(it.ID)})
	}
	if gone, err := p.store.Forget(digest.Digest(it.ID)); err != nil || !gone {
		return false, err
	}
	_, err := p.remove(p.own[it.ID])
	return true, err
}

// remove removes the blobs that no image has and nobody holds. The list of images cannot change meanwhile: what is not on it now can only
// get onto it by one who holds its blobs before.
func (p *blobsPart) remove(blobs []digest.Digest) (gone bool, err error) {
	err = p.store.Locked(func(entries []ocispec.Descriptor) error {
		if index := fmt.Sprint(entries); p.listed == nil || index != p.index {
			p.index, p.listed = index, newReached()
			for _, e := range entries {
				p.store.reach(p.listed, e)
			}
		}
		for _, d := range blobs {
			path, err := p.store.Path(d)
			if err != nil {
				return err
			}
			if _, ok := p.listed.Blobs[d]; ok {
				continue
			}
			ok, err := part.Reap(lease.Remove(path, p.trash))
			if err != nil {
				return err
			}
			gone = gone || ok
		}
		return nil
	})
	return gone, err
}
