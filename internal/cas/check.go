package cas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"

	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/part"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

var algorithms = part.NewPattern(`^sha256$`)

// Check implements part.Part.
func (p *blobsPart) Check(ctx context.Context, r *part.Report) error {
	if err := errors.Join(r.Dir(rootdir.Blobs, algorithms.MatchString), r.Dir(blobsDir, part.Hash.MatchString)); err != nil {
		return err
	}
	if err := p.store.checkBlobs(ctx, r); err != nil {
		return err
	}
	if err := p.store.checkIndex(ctx, r); err != nil {
		return err
	}
	if p.store.CheckIndex() != nil {
		return nil // it was not repaired
	}
	return p.store.checkImages(ctx, r)
}

// checkBlobs reads every blob.
func (s *Store) checkBlobs(ctx context.Context, r *part.Report) error {
	var all []digest.Digest
	var total int64
	err := s.Blobs(func(d digest.Digest, size int64) error {
		all = append(all, d)
		total += size
		return nil
	})
	if err != nil {
		return err
	}
	r.Count(part.Blob, len(all))
	r.Begin(total)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, d := range all {
		g.Go(func() error { return s.checkBlob(ctx, r, d) })
	}
	return g.Wait()
}

func (s *Store) checkBlob(ctx context.Context, r *part.Report, d digest.Digest) error {
	path, err := s.Path(d)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was pruned
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	err = Verify(ctx, f, ocispec.Descriptor{Digest: d, Size: info.Size()}, make([]byte, blockSize))
	r.Read(info.Size())
	if ended := ctxio.Ended(ctx); ended != nil || err == nil {
		return ended
	}
	problem := "cannot be read: " + err.Error()
	if errors.As(err, new(*MismatchError)) {
		problem = "has different content: its digest does not match its name"
	}
	r.SetDamaged(part.Blob, d.String())
	return r.Problem(path, problem, "the next build that needs it fetches it or makes it again", func() error { return s.Remove(d) })
}

// checkIndex reads the list of images.
func (s *Store) checkIndex(ctx context.Context, r *part.Report) error {
	damage := s.CheckIndex()
	if damage == nil {
		return nil
	}
	others, err := s.manifests(ctx, r)
	if err != nil {
		return err
	}
	return r.Problem(s.indexPath(), "cannot be read: "+damage.Error(),
		"no image can be found by its name; a repair lists all images in the store, without a name if that is lost",
		func() error { return s.RepairIndex(others) })
}

// checkImages checks that the blobs of every image exist. The list of images is locked, so none of their blobs is pruned
// meanwhile.
func (s *Store) checkImages(ctx context.Context, r *part.Report) error {
	var unusable []digest.Digest
	err := s.Locked(func(entries []ocispec.Descriptor) error {
		r.Count(part.Image, len(entries))
		for _, e := range entries {
			if err := ctxio.Ended(ctx); err != nil {
				return err
			}
			listable, err := s.checkImage(r, e)
			if err != nil {
				return err
			}
			if !listable {
				unusable = append(unusable, e.Digest)
			}
		}
		return nil
	})
	if err != nil || !r.Repair {
		return err
	}
	for _, d := range unusable {
		// An image without its manifest cannot be listed.
		if err := s.Drop(ocispec.Descriptor{Digest: d}); err != nil && !errors.As(err, new(*NotFoundError)) {
			return err
		}
	}
	return nil
}

// checkImage reports the missing blobs of an image, and returns whether the image can be listed.
func (s *Store) checkImage(r *part.Report, e ocispec.Descriptor) (listable bool, err error) {
	name := e.Annotations[ocispec.AnnotationRefName]
	if name == "" {
		name = e.Digest.String()
	}
	lost, listable := s.lacks(r, e)
	for _, d := range lost {
		path, err := s.Path(d)
		if err != nil {
			return false, err
		}
		problem := "is missing"
		if r.Damaged(part.Blob, d.String()) && !r.Repair {
			problem = "is damaged"
		}
		effect := fmt.Sprintf("image %s cannot be used: build or pull it again", name)
		if r.Repair && !listable {
			effect += "; it is no longer listed"
		}
		if err := r.Problem(path, problem, effect, nil); err != nil {
			return false, err
		}
	}
	return listable, nil
}

// lacks returns the missing blobs of an image, and whether its manifest and config can be read. An index that was pulled for one
// platform has only that platform's manifest.
func (s *Store) lacks(r *part.Report, desc ocispec.Descriptor) (lost []digest.Digest, listable bool) {
	missing := func(d ocispec.Descriptor) bool {
		size, err := s.Stat(d.Digest)
		return err != nil || size != d.Size || r.Damaged(part.Blob, d.Digest.String())
	}
	if missing(desc) {
		return []digest.Digest{desc.Digest}, false
	}
	if !IsIndex(desc.MediaType) && !IsManifest(desc.MediaType) {
		return nil, true
	}
	m, ok := s.refs(desc)
	if !ok {
		return []digest.Digest{desc.Digest}, false
	}
	listable = true
	there := 0
	for _, d := range m.Manifests {
		if _, err := s.Stat(d.Digest); err != nil && !r.Damaged(part.Blob, d.Digest.String()) {
			continue
		}
		there++
		sub, ok := s.lacks(r, d)
		lost, listable = append(lost, sub...), listable && ok
	}
	if len(m.Manifests) > 0 && there == 0 {
		return []digest.Digest{m.Manifests[0].Digest}, false
	}
	if m.Config != nil && missing(*m.Config) {
		lost, listable = append(lost, m.Config.Digest), false
	}
	for _, d := range m.Layers {
		if missing(d) {
			lost = append(lost, d.Digest)
		}
	}
	return lost, listable
}

// manifests returns the images among the blobs, except those that belong to an index.
func (s *Store) manifests(ctx context.Context, r *part.Report) ([]ocispec.Descriptor, error) {
	var all []ocispec.Descriptor
	inIndex := map[digest.Digest]bool{}
	err := s.Blobs(func(d digest.Digest, size int64) error {
		if err := ctxio.Ended(ctx); err != nil {
			return err
		}
		if size > MaxManifest || r.Damaged(part.Blob, d.String()) {
			return nil
		}
		desc := ocispec.Descriptor{Digest: d, Size: size}
		m, ok := s.refs(desc)
		if !ok || !IsIndex(m.MediaType) && !IsManifest(m.MediaType) {
			return nil
		}
		desc.MediaType = m.MediaType
		if lost, _ := s.lacks(r, desc); len(lost) > 0 {
			return nil
		}
		for _, sub := range m.Manifests {
			inIndex[sub.Digest] = true
		}
		all = append(all, desc)
		return nil
	})
	return slices.DeleteFunc(all, func(d ocispec.Descriptor) bool { return inIndex[d.Digest] }), err
}
