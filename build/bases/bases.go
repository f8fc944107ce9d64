// Package bases finds the images that a build starts from, in the image store, in OCI layouts and in registries, and gets their layers.
package bases

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"

	"github.com/kilnbuild/kiln/build/sources"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/material"
	"github.com/kilnbuild/kiln/internal/once"
	"github.com/kilnbuild/kiln/internal/resolved"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/registry/layout"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/store/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bases finds the images that a build starts from, and their layers. It implements frontend.Resolver and execute.Images.
type Bases struct {
	store  *cas.Store
	client *registry.Client
	names  *resolved.Names
	events *events.Stream
	pull   sources.Pull
	from   *sources.Sources
	docs   registry.Known

	// Stores, where not nil, has the OCI layouts: a client elsewhere has them, and what a request calls a layout is no directory here.
	Stores Stores

	asking  once.Group[llb.Image, base] // images that are being resolved late
	mu      sync.Mutex
	found   map[string]base    // by manifest digest
	late    map[llb.Image]base // those that became vertices before they were resolved
	layouts map[string]*layout.Layout
	warned  map[string]bool // names of images whose registries do not answer
}

// Stores has the OCI layouts of a client elsewhere. It is safe for concurrent use.
type Stores interface {
	// Store returns a layout by its name. session is as in llb.Image.
	Store(ctx context.Context, session, name string) (image.Source, error)
}

// named are OCI layouts in directories of this machine, by names.
type named struct {
	*Bases
	dirs map[string]string
}

// Named returns Stores with the layouts in directories, by their names.
func (b *Bases) Named(dirs map[string]string) Stores { return named{b, dirs} }

// Store implements Stores.
func (n named) Store(_ context.Context, session, name string) (image.Source, error) {
	dir, ok := n.dirs[name]
	if !ok || session != "" {
		return nil, fmt.Errorf("the build has no OCI layout %q", name)
	}
	return n.layout(dir)
}

// base is an image that was resolved.
type base struct {
	image  *image.Image
	source image.Source
	ref    string
	task   *events.Task // of its vertex; nil before that is solved
	// documents are those that whoever asks the registry for the same image has to ask for by their digests.
	documents []ocispec.Descriptor
}

// New returns the bases of one build. from is told what names stand for, and docs asked for what describes images before registries are.
// Close must be called.
func New(
	store *cas.Store, client *registry.Client, names *resolved.Names, pull sources.Pull, from *sources.Sources, docs registry.Known,
	s *events.Stream,
) *Bases {
	return &Bases{
		store: store, client: client, names: names, events: s, pull: pull, from: from, docs: docs,
		found: map[string]base{}, late: map[llb.Image]base{}, layouts: map[string]*layout.Layout{}, warned: map[string]bool{},
	}
}

// Close closes the layouts that were opened.
func (b *Bases) Close() {
	for _, l := range b.layouts {
		l.Close()
	}
}

// ResolveImage implements frontend.Resolver. An image of the local store comes before one of a registry, unless the build was asked to
// pull.
func (b *Bases) ResolveImage(ctx context.Context, req frontend.ImageRequest) (*frontend.BaseImage, error) {
	task := b.events.Task(req.Place, req.Text)
	found, err := b.settle(events.With(ctx, task), &req)
	task.Done(err)
	if err != nil {
		return nil, err
	}
	out := &frontend.BaseImage{Ref: req.Ref, Digest: found.image.Desc.Digest.String()}
	if err := json.Unmarshal(found.image.Config, &out.Config); err != nil {
		return nil, fmt.Errorf("read the config of %s: %w", found.ref, err)
	}
	b.from.Took(describe(req, found.image))
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.found[out.Digest]; !ok {
		b.found[out.Digest] = *found
	}
	return out, nil
}

// documents returns the documents of an image that are asked for by their digests: its name leads to the first one, unless it is a digest.
func documents(b *base) []ocispec.Descriptor {
	all := []ocispec.Descriptor{b.image.Manifest.Config}
	pinned := false
	if ref, err := imagename.Parse(b.ref); err == nil {
		pinned = ref.Digest != ""
	}
	if pinned {
		all = append(all, b.image.Target)
	}
	if b.image.Desc.Digest != b.image.Target.Digest {
		all = append(all, b.image.Desc)
	}
	return all
}

// Documents returns what describes the images of registries that the build starts from and cannot be had with their names: each document
// that has at most limit bytes.
func (b *Bases) Documents(limit int64) [][]byte {
	var descs []ocispec.Descriptor
	b.mu.Lock()
	for _, found := range b.found {
		descs = append(descs, found.documents...)
	}
	for _, found := range b.late {
		descs = append(descs, found.documents...)
	}
	b.mu.Unlock()
	var all [][]byte
	for _, d := range descs {
		if data, err := b.store.ReadAll(d, limit); err == nil { // others do without
			all = append(all, data)
		}
	}
	return all
}

// maxReplaced is how often a policy may put another image in the place of one whose digest is known.
const maxReplaced = 20

// settle resolves a request, and goes on with another image as long as a policy puts one in the place of what was found. The request
// becomes that of the image which it returns.
func (b *Bases) settle(ctx context.Context, req *frontend.ImageRequest) (*base, error) {
	for range maxReplaced {
		found, err := b.resolve(ctx, *req)
		if err != nil || req.Layout != "" {
			return found, err
		}
		next, pinned, err := b.from.Found(req.Ref, found.image.Target.Digest.String())
		if err != nil || next == "" {
			found.documents = documents(found)
			return found, err
		}
		req.Ref, req.Digest = next, pinned
	}
	return nil, fmt.Errorf("the source policy replaces %s over and over, by its digest: there is probably a circle", req.Ref)
}

// describe returns an image that was found for a request as a material.
func describe(req frontend.ImageRequest, img *image.Image) material.Material {
	m := material.Material{
		Kind: material.Image, Name: req.Ref, Digest: img.Target.Digest.String(), Platform: req.Platform.String(),
		Manifest: img.Desc.Digest.String(),
	}
	if req.Layout != "" {
		m.Kind, m.Name = material.Layout, layout.Name(req.Layout, req.Ref)
	}
	return m
}

func (b *Bases) resolve(ctx context.Context, req frontend.ImageRequest) (*base, error) {
	platform := images.OCIPlatform(req.Platform)
	if req.Layout != "" && b.Stores != nil {
		return b.stored(ctx, "", req.Layout, req.Ref, platform)
	}
	if req.Layout != "" {
		l, err := b.layout(req.Layout)
		if err != nil {
			return nil, err
		}
		img, err := l.Resolve(ctx, req.Ref, platform, b.store)
		return &base{image: img, source: l, ref: req.Ref}, err
	}
	if req.Digest != "" {
		return b.pinned(ctx, req, platform)
	}
	if b.pull == sources.Missing && req.Pull != llb.PullAlways || req.Pull == llb.PullLocal {
		if found, err := b.local(ctx, req.Ref, platform); found != nil || err != nil {
			return found, err
		}
	}
	img, err := b.ask(ctx, req.Ref, platform)
	if failed, ok := errors.AsType[*registry.Error](err); ok && b.pull == sources.First && !failed.Down() {
		if found := b.insteadOf(ctx, req.Ref, platform, failed); found != nil {
			return found, nil
		}
	}
	return &base{image: img, source: b.client, ref: req.Ref}, err
}

// insteadOf returns the image that the store has under a name which its registry does not give, nil if it has none, and says so. If the
// name has a digest, the image has it, and may be called by its tag alone.
func (b *Bases) insteadOf(ctx context.Context, name string, platform ocispec.Platform, failed *registry.Error) *base {
	found, _ := b.local(ctx, name, platform)
	if ref, err := imagename.Parse(name); found == nil && err == nil && ref.Digest != "" {
		want := ref.Digest
		ref.Digest = ""
		if found, _ = b.local(ctx, ref.String(), platform); found != nil && found.image.Target.Digest != want {
			return nil
		}
	}
	if found == nil {
		return nil
	}
	b.events.Warn(fmt.Sprintf("%s is taken as it is in kiln's store, where nobody else has it: %v", name, failed))
	return found
}

// stored resolves an image in an OCI layout of a client.
func (b *Bases) stored(ctx context.Context, session, name, ref string, platform ocispec.Platform) (*base, error) {
	s, err := b.Stores.Store(ctx, session, name)
	if err != nil {
		return nil, err
	}
	img, err := s.Resolve(ctx, ref, platform, b.store)
	return &base{image: img, source: s, ref: ref}, err
}

// resolveLate resolves an image that is a vertex already.
func (b *Bases) resolveLate(ctx context.Context, op llb.Image) (*base, error) {
	platform := llb.Host()
	if op.Platform != "" {
		var err error
		if platform, err = llb.ParsePlatform(op.Platform, platform); err != nil {
			return nil, err
		}
	}
	req := frontend.ImageRequest{Ref: op.Ref, Digest: op.Digest, Layout: op.Layout, Platform: platform, Pull: op.Pull}
	var found *base
	var err error
	switch {
	case op.Store == "":
		found, err = b.settle(ctx, &req)
	case b.Stores == nil:
		return nil, fmt.Errorf("the build has no client with an OCI layout %q", op.Store)
	default:
		req.Layout = op.Store
		found, err = b.stored(ctx, op.Session, op.Store, cmp.Or(op.Digest, op.Ref), images.OCIPlatform(platform))
	}
	if err != nil {
		return nil, err
	}
	if got := found.image.Target.Digest.String(); op.Checksum != "" && got != op.Checksum {
		return nil, &ChecksumError{Ref: req.Ref, Want: op.Checksum, Got: got}
	}
	b.from.Took(describe(req, found.image))
	return found, nil
}

// ChecksumError is an image that is not the one which it has to be.
type ChecksumError struct {
	Ref, Want, Got string
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("image digest %s for %s does not match expected checksum %s", e.Got, e.Ref, e.Want)
}

// local returns the image that the store has under a name, nil if it has none for the platform.
func (b *Bases) local(ctx context.Context, name string, platform ocispec.Platform) (*base, error) {
	local, err := b.store.Lookup(name)
	if err != nil || local.Name != name {
		return nil, nil // whoever is asked then says so, if it is missed
	}
	l, err := b.layout(b.store.Root())
	if err != nil {
		return nil, err
	}
	img, err := l.Resolve(ctx, local.Desc.Digest.String(), platform, b.store)
	if _, other := errors.AsType[*image.PlatformError](err); other {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b.hold(img)
	return &base{image: img, source: l, ref: name}, nil
}

// pinned resolves an image whose digest is given: its tag has no part in it, and no registry is asked if the store has it, unless the build
// is a client's to whom the registry has not shown it.
func (b *Bases) pinned(ctx context.Context, req frontend.ImageRequest, platform ocispec.Platform) (*base, error) {
	ref, err := imagename.Parse(req.Ref)
	if err != nil {
		return nil, err
	}
	ref.Digest = digest.Digest(req.Digest)
	img, err := b.client.ResolveKnown(ctx, ref.String(), platform, b.store, b.docs)
	if err != nil {
		failed, ok := errors.AsType[*registry.Error](err)
		local := req.Pull == llb.PullLocal || b.pull == sources.Missing
		if ctx.Err() == nil && ok && (local || b.pull == sources.First && !failed.Down()) && req.Pull != llb.PullAlways {
			if found := b.insteadOf(ctx, ref.String(), platform, failed); found != nil {
				return found, nil
			}
		}
		if ctx.Err() != nil || ok && failed.Down() {
			return nil, err
		}
		return nil, b.from.ImageGone(req.Ref, err)
	}
	b.hold(img)
	return &base{image: img, source: b.client, ref: ref.String()}, nil
}

// ask resolves an image at its registry. If that does not answer, and the build was not asked to pull, the image is what the name stood for
// when the registry was asked last, if the store still has that.
func (b *Bases) ask(ctx context.Context, name string, platform ocispec.Platform) (*image.Image, error) {
	img, err := b.client.ResolveKnown(ctx, name, platform, b.store, b.docs)
	ref, parseErr := imagename.Parse(name)
	if parseErr != nil || ref.Digest != "" {
		return img, err
	}
	if err == nil {
		if err := b.names.Remember(name, img.Target.Digest); err != nil {
			b.events.Warn(fmt.Sprintf("%s cannot be used while its registry does not answer: %v", name, err))
		}
		return img, nil
	}
	failed, ok := errors.AsType[*registry.Error](err)
	if !ok || !failed.Down() || b.pull != sources.Missing {
		return nil, err
	}
	known, at, ok := b.names.Recall(name)
	if !ok {
		return nil, err
	}
	ref.Digest = known
	if img, _ = b.client.Resolve(ctx, ref.String(), platform, b.store); img == nil {
		return nil, err
	}
	b.hold(img)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.warned[name] {
		b.warned[name] = true
		b.events.Warn(fmt.Sprintf("the registry %s does not answer for %s (%v); "+
			"the build uses the image of its last answer, %s ago; with --pull that is an error",
			failed.Registry, name, failed.Err, strings.ToLower(units.HumanDuration(time.Since(at)))))
	}
	return img, nil
}

// hold keeps others from pruning the layers of an image of the local store. One that is not there is missed when it is needed.
func (b *Bases) hold(img *image.Image) {
	for _, l := range img.Manifest.Layers {
		b.store.Has(l)
	}
}

func (b *Bases) layout(dir string) (*layout.Layout, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.layouts[dir]; l != nil {
		return l, nil
	}
	l, err := layout.Open(dir)
	if err == nil {
		b.layouts[dir] = l
	}
	return l, err
}

// get returns an image. One that has not been resolved yet is resolved.
func (b *Bases) get(ctx context.Context, op llb.Image) (base, error) {
	if found, ok := b.known(op); ok {
		return found, nil
	}
	return b.asking.Do(ctx, op, func(ctx context.Context) (base, error) {
		if found, ok := b.known(op); ok {
			return found, nil
		}
		found, err := b.resolveLate(ctx, op)
		if err != nil {
			return base{}, err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.late[op] = *found
		return *found, nil
	})
}

// known returns an image that was resolved.
func (b *Bases) known(op llb.Image) (base, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if op.Platform == "" {
		if found, ok := b.found[op.Digest]; ok {
			return found, true
		}
	}
	found, ok := b.late[op]
	return found, ok
}

// begin notes the vertex of an image, which ctx has, unless that is known: then it is the export that asks.
func (b *Bases) begin(ctx context.Context, op llb.Image) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if found, ok := b.late[op]; ok {
		found.task = cmp.Or(found.task, events.From(ctx))
		b.late[op] = found
	} else if found, ok := b.found[op.Digest]; ok {
		found.task = cmp.Or(found.task, events.From(ctx))
		b.found[op.Digest] = found
	}
}

// Layers implements execute.Images. Of two blobs with the same diff id only the first is ever unpacked, and so compared with
// it: that one then stands for both, and no image gets the other.
func (b *Bases) Layers(ctx context.Context, op llb.Image) ([]execute.ImageLayer, error) {
	found, err := b.get(ctx, op)
	if err != nil {
		return nil, err
	}
	b.begin(ctx, op)
	ids := found.image.DiffIDs
	if op.Layers > 0 && op.Layers < len(ids) {
		ids = ids[:op.Layers]
	}
	layers := make([]execute.ImageLayer, len(ids))
	for i, d := range ids {
		first := slices.Index(found.image.DiffIDs, d)
		layers[i] = execute.ImageLayer{Blob: found.image.Manifest.Layers[first], DiffID: d, Windows: found.image.Platform.OS == "windows"}
	}
	return layers, nil
}

// Architecture implements execute.Images.
func (b *Bases) Architecture(op llb.Image) string {
	found, ok := b.known(op)
	if !ok {
		return "" // it is not known before its layers are
	}
	return found.image.Platform.Architecture
}

// Open implements execute.Images: a blob that is not in the store yet is brought there while it is read.
func (b *Bases) Open(ctx context.Context, op llb.Image, l execute.ImageLayer) (io.ReadCloser, error) {
	found, err := b.get(ctx, op)
	if err != nil {
		return nil, err
	}
	if b.store.Has(l.Blob) {
		// Nothing comes down.
		events.From(ctx).Emit(events.Transfer{Name: l.Blob.Digest.String(), Phase: events.Extracting, Current: l.Blob.Size, Total: l.Blob.Size})
	}
	return registry.Stream(ctx, images.Reporting{Source: found.source}, found.ref, l.Blob, b.store)
}

// Download brings a blob of an image into the store. That is reported at the image's vertex, for which the vertex of ctx waits.
func (b *Bases) Download(ctx context.Context, op llb.Image, blob ocispec.Descriptor) (err error) {
	if b.store.Has(blob) {
		return nil
	}
	found, err := b.get(ctx, op)
	if err != nil {
		return err
	}
	if found.task != nil {
		release, resume := found.task.Hold(), events.From(ctx).Wait(found.task)
		defer func() {
			release(err)
			resume()
		}()
		ctx = events.With(ctx, found.task)
	}
	return registry.Download(ctx, images.Reporting{Source: found.source}, found.ref, blob, b.store)
}

// blobs have blobs by their digests alone.
type blobs interface {
	image.Fetcher
	// FindBlob returns the descriptor of a blob, without a media type.
	FindBlob(ctx context.Context, ref string, d digest.Digest) (ocispec.Descriptor, error)
}

// Blob implements execute.Blobs.
func (b *Bases) Blob(ctx context.Context, op llb.Blob) (io.ReadCloser, int64, error) {
	var from blobs = b.client
	if op.Store != "" {
		if b.Stores == nil {
			return nil, 0, fmt.Errorf("the build has no client with an OCI layout %q", op.Store)
		}
		s, err := b.Stores.Store(ctx, op.Session, op.Store)
		if err != nil {
			return nil, 0, err
		}
		ok := false
		if from, ok = s.(blobs); !ok {
			return nil, 0, fmt.Errorf("BUG: %T finds no blobs", s)
		}
	}
	desc, err := from.FindBlob(ctx, op.Ref, digest.Digest(op.Digest))
	if err != nil {
		return nil, 0, err
	}
	body, err := from.Fetch(ctx, op.Ref, desc)
	if err != nil {
		return nil, 0, err
	}
	return images.Downloading(ctx, desc, body), desc.Size, nil
}

// Repository returns the repository that an image came from, "" for one that is not of a registry.
func (b *Bases) Repository(op llb.Image) string {
	if op.Layout != "" || op.Store != "" {
		return ""
	}
	ref, err := imagename.Parse(op.Ref)
	if err != nil {
		return ""
	}
	return ref.Name()
}

// Described is an image that was found.
type Described struct {
	// Ref is the name that it has, with a digest if it was looked up by that.
	Ref string
	// Digest is that of the manifest or index which the name stands for, and Config the configuration for the platform.
	Digest digest.Digest
	Config []byte
}

// Describe looks up what an image is now. Whoever uses the op gets the same.
func (b *Bases) Describe(ctx context.Context, op llb.Image) (*Described, error) {
	found, err := b.get(ctx, op)
	if err != nil {
		return nil, err
	}
	return &Described{found.ref, found.image.Target.Digest, found.image.Config}, nil
}
