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

// blobsPart implements part.Part for the images without a name, and the blobs that belong to no image.
type blobsPart struct {
	store *Store
	trash string
	named *Named
	// own are the blobs of each image listed by Items that belong to no named image, its manifest first.
	own map[string][]digest.Digest
	// listed are the blobs reachable from the list of images whose text is index.
	listed *Reached
	index  string
}

// Part returns the images and blobs as a part of the root directory, except those in named. Removed items are moved to the
// directory trash first.
func (s *Store) Part(trash string, named *Named) part.Part {
	return &blobsPart{store: s, trash: trash, named: named, own: map[string][]digest.Digest{}}
}

// Name implements part.Part.
func (p *blobsPart) Name() string { return "blobs and images" }

// diskSize returns the disk usage of a blob in bytes, or 0 if it does not exist.
func (s *Store) diskSize(d digest.Digest) int64 {
	var it part.Item
	if path, err := s.Path(d); err == nil {
		it.Measure(path)
	}
	return it.Size
}

// Items implements part.Part. A blob that belongs to several images without a name is counted with the first.
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

// unnamed returns the blobs that belong to no named image.
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

// Remove implements part.Part. For an image it removes the blobs that belong to no other image.
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

// remove removes the blobs that no image has and no process holds. The list of images is locked, and a process that adds an image
// to it holds its blobs first.
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
