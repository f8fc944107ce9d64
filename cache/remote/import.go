package remote

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/solver"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Import is a cache that a build reads. It is read once, in the background, from Begin on.
type Import struct {
	Repository Repository
	Tag        string
	// Keys are nil if it does not matter who made a record. Otherwise what none of them has signed is not there.
	Keys pack.Keys

	// What was looked up in it by those keys, and is signed or not; guarded by signing.
	signing sync.Mutex
	signed  map[solver.Key]bool      // of records and shortcuts
	bases   map[layer.ID]bool        // of what is said of layers of images
	layers  map[layer.ID]signedLayer // with the blobs that are signed

	// apart is closed when the manifest is read and more is asked for, and loaded when the cache is read.
	apart, loaded chan struct{}
	// doubted says that a layer of the cache was not there, so that others are looked for before they count; bad that the cache has sent
	// something else than it should, or nothing, and is not used any more. Both are guarded by Imports.mu.
	doubted, bad bool
	losses       int   // how often a layer that it has was not there after all
	head         *Head // empty if it cannot be used
	err          error
}

// Imports are the caches that one build reads, in the order in which the user named them. What cannot be used of them is missed. They are
// safe for concurrent use.
type Imports struct {
	warn    func(string)
	ctx     context.Context
	reading chan struct{} // is held while a cache is read

	mu    sync.Mutex
	room  int // bytes of memory that are left for records
	list  []*Import
	there map[layer.ID]bool // of layers of doubted caches: whether they are there
}

const (
	// readAtOnce is how many caches of one build are read at once.
	readAtOnce = 4
	// maxRecordMemory is how many bytes of memory the records of all caches take that one build imports.
	maxRecordMemory = 512 << 20
)

// Begin begins to read caches. warn is told once of each that cannot be used, and why.
func Begin(ctx context.Context, caches []*Import, warn func(string)) *Imports {
	im := &Imports{warn: warn, ctx: ctx, reading: make(chan struct{}, readAtOnce), room: maxRecordMemory, there: map[layer.ID]bool{}}
	for _, c := range caches {
		im.begin(c)
	}
	im.list = caches
	return im
}

// Add begins to read further caches, but for those that are read already.
func (im *Imports) Add(caches []*Import) {
	im.mu.Lock()
	defer im.mu.Unlock()
	all := slices.Clip(im.list)
	for _, c := range caches {
		same := func(other *Import) bool {
			return other.Repository.String() == c.Repository.String() && other.Tag == c.Tag
		}
		if !slices.ContainsFunc(all, same) {
			im.begin(c)
			all = append(all, c)
		}
	}
	im.list = all
}

// begin begins to read a cache.
func (im *Imports) begin(c *Import) {
	c.apart, c.loaded = make(chan struct{}), make(chan struct{})
	c.signed, c.layers, c.bases = map[solver.Key]bool{}, map[layer.ID]signedLayer{}, map[layer.ID]bool{}
	apart := sync.OnceFunc(func() { close(c.apart) })
	go func() {
		defer close(c.loaded)
		c.head, c.err = im.read(c, apart)
		switch {
		case c.err == nil || im.ctx.Err() != nil:
		case none(c.err):
			im.warn(fmt.Sprintf("the cache %s does not exist yet", c.Repository))
		default:
			im.warn(fmt.Sprintf("the cache %s is not used: %v", c.Repository, c.err))
		}
		if c.head == nil {
			c.head = &Head{Pack: &pack.Pack{}}
		}
	}()
}

// read reads a cache.
func (im *Imports) read(c *Import, apart func()) (*Head, error) {
	select {
	case im.reading <- struct{}{}:
		defer func() { <-im.reading }()
	case <-im.ctx.Done():
		return nil, context.Cause(im.ctx)
	}
	h, err := readTag(im.ctx, c.Repository, c.Tag, apart)
	if err != nil {
		return nil, err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.room -= h.Pack.Memory(); im.room < 0 {
		im.room += h.Pack.Memory()
		return nil, fmt.Errorf("its records and those of the other caches would take more than %s of memory", termtext.Size(maxRecordMemory))
	}
	return h, nil
}

// All returns the caches.
func (im *Imports) All() []*Import {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.list
}

// wait returns the caches once they are read.
func (im *Imports) wait(ctx context.Context) ([]*Import, error) {
	all := im.All()
	for _, c := range all {
		select {
		case <-c.loaded:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return all, nil
}

// Record returns the record of a key: that of a cache which has its layers, or else one without. The error is that of ctx.
func (im *Imports) Record(ctx context.Context, key solver.Key) (pack.Record, bool, error) {
	caches, err := im.wait(ctx)
	if err != nil {
		return pack.Record{}, false, err
	}
	var known pack.Record
	found := false
	for _, c := range caches {
		r, ok := c.record(key)
		if !ok || im.isBad(c) {
			continue
		}
		whole := true
		for _, m := range r.Outputs {
			whole = whole && im.Has(m.Layer)
		}
		if whole {
			return r, true, nil
		}
		if !found {
			known, found = r, true
		}
	}
	return known, found, nil
}

// isBad reports whether a cache is not used any more.
func (im *Imports) isBad(c *Import) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return c.bad
}

// Shortcut returns the shortcut that leads from a key. The error is that of ctx.
func (im *Imports) Shortcut(ctx context.Context, from solver.Key) (pack.Shortcut, bool, error) {
	caches, err := im.wait(ctx)
	if err != nil {
		return pack.Shortcut{}, false, err
	}
	for _, c := range caches {
		if t, ok := c.shortcut(from); ok {
			return t, true, nil
		}
	}
	return pack.Shortcut{}, false, nil
}

// Document returns the document of an image with a digest, nil if no cache has it; whether it has that digest is for the caller to verify.
// It waits for the manifests of the caches, and not for what takes further requests, beside which the document can be asked for where the
// image is.
func (im *Imports) Document(ctx context.Context, d digest.Digest) []byte {
	for _, c := range im.All() {
		select {
		case <-c.loaded:
		case <-c.apart:
		case <-ctx.Done():
			return nil
		}
		if !c.isLoaded() {
			continue
		}
		if found, ok := c.head.Pack.Documents[d]; ok {
			return []byte(found.Text)
		}
	}
	return nil
}

// isLoaded reports whether the cache is read.
func (c *Import) isLoaded() bool {
	select {
	case <-c.loaded:
		return true
	default:
		return false
	}
}

// maxLosses is how often a cache may lack what it has just had before it is not used any more.
const maxLosses = 3

// Has reports whether a cache that was read has a layer: its manifest and a blob.
func (im *Imports) Has(l solver.Layer) bool {
	if l.Content == (solver.Content{}) {
		return true // it has no entries, and so no bytes
	}
	_, have, ok := im.find(layer.ID(l.ID))
	return ok && have.Content == l.Content
}

// Layer returns what the caches say of a layer.
func (im *Imports) Layer(id layer.ID) (pack.Layer, bool) {
	_, l, ok := im.find(id)
	return l, ok
}

func (im *Imports) find(id layer.ID) (*Import, pack.Layer, bool) {
	for _, c := range im.All() {
		if !c.isLoaded() {
			continue
		}
		if l, ok := c.layer(id); ok && (l.Manifest.Digest != "" || l.Image) && len(l.Blobs) > 0 && im.usable(c, l) {
			return c, l, true
		}
	}
	return nil, pack.Layer{}, false
}

// usable reports whether a cache has a layer that it lists. It is taken at its word until it was wrong once.
func (im *Imports) usable(c *Import, l pack.Layer) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	if c.bad || !c.doubted {
		return !c.bad
	}
	there, known := im.there[l.ID]
	if !known {
		there = true
		for _, d := range l.Descriptors() {
			blob, err := c.Repository.Open(im.ctx, d)
			if err == nil {
				err = blob.Close()
			}
			there = there && err == nil
		}
		im.there[l.ID] = there
	}
	return there
}

// GoneError says that a layer that a cache has listed cannot be had. A build that relied on it makes it again, after Drop.
type GoneError struct {
	Layer layer.ID
	Cache string
	Err   error
}

func (e *GoneError) Error() string {
	return fmt.Sprintf("layer %s of the cache %s: %v", e.Layer, e.Cache, e.Err)
}

// Unwrap returns the cause.
func (e *GoneError) Unwrap() error { return e.Err }

// Retried reports that the build does not fail for it: what was relied upon is made again.
func (e *GoneError) Retried() bool { return true }

// Drop makes the cache not have the layer any more, and warns once of each cache.
func (im *Imports) Drop(e *GoneError) {
	im.mu.Lock()
	defer im.mu.Unlock()
	warned := false
	for _, c := range im.list {
		if c.Repository.String() != e.Cache {
			continue
		}
		warned = warned || c.bad || c.doubted && none(e.Err)
		if !none(e.Err) {
			if !warned {
				im.warn(fmt.Sprintf("the cache %s is not used any more, and the steps that were found there run again: %v", e.Cache, e.Err))
			}
			c.bad, warned = true, true
			continue
		}
		if c.losses++; c.losses > maxLosses {
			c.bad = true
		}
		if !warned {
			im.warn(fmt.Sprintf("the cache %s has lost layers, and the steps that made them run again: %v", e.Cache, e.Err))
		}
		c.doubted, warned = true, true
		im.there[e.Layer] = false
	}
}

// Manifest returns the manifest of a layer in the form of package layer. Errors are *GoneError, or those of ctx.
func (im *Imports) Manifest(ctx context.Context, id layer.ID) (io.ReadCloser, error) {
	c, l, ok := im.find(id)
	if !ok {
		return nil, &GoneError{id, "", fs.ErrNotExist}
	}
	return im.manifest(ctx, c, id, l.Manifest)
}

func (im *Imports) manifest(ctx context.Context, c *Import, id layer.ID, desc ocispec.Descriptor) (io.ReadCloser, error) {
	blob, err := c.Repository.Open(ctx, desc)
	if err != nil {
		return nil, im.failed(ctx, c, id, err)
	}
	z, err := zstd.NewReader(blob, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(pack.MaxWindow))
	if err != nil {
		blob.Close()
		return nil, err
	}
	return &reading{im: im, ctx: ctx, cache: c, id: id, Reader: io.LimitReader(z, maxLayerManifest), close: func() error {
		z.Close()
		return blob.Close()
	}}, nil
}

// maxLayerManifest bounds the manifest of a layer, decompressed, in bytes: that of 4 million entries has a few hundred.
const maxLayerManifest = 2 << 30

// Blob returns the blob of a layer in an encoding or, for "", in any, and the name of its encoding.
func (im *Imports) Blob(id layer.ID, encoding string) (b pack.Blob, in string, ok bool) {
	_, l, _ := im.find(id)
	if encoding != "" {
		b, ok = l.Blobs[encoding]
		return b, encoding, ok
	}
	for _, name := range append([]string{"zstd", "gzip", "uncompressed"}, slices.Sorted(maps.Keys(l.Blobs))...) {
		if b, ok = l.Blobs[name]; ok && !strings.HasSuffix(name, ".windows") { // a tar for Windows has its files elsewhere
			return b, name, true
		}
	}
	return pack.Blob{}, "", false
}

// Open opens a blob of a layer, or the manifest of one of an image. Errors of opening and reading are *GoneError, or those of ctx.
func (im *Imports) Open(ctx context.Context, id layer.ID, desc ocispec.Descriptor) (io.ReadCloser, error) {
	c, ok := im.cacheOf(id)
	if !ok {
		return nil, &GoneError{id, "", fs.ErrNotExist}
	}
	blob, err := c.Repository.Open(ctx, desc)
	if err != nil {
		return nil, im.failed(ctx, c, id, err)
	}
	return &reading{im: im, ctx: ctx, cache: c, id: id, Reader: blob, close: blob.Close}, nil
}

// NameOf returns the name of the cache that has a layer, or says what is in it; "" for none.
func (im *Imports) NameOf(id layer.ID) string {
	if c, ok := im.cacheOf(id); ok {
		return c.Repository.String()
	}
	return ""
}

func (im *Imports) cacheOf(id layer.ID) (*Import, bool) {
	c, _, ok := im.find(id)
	if !ok {
		c, _, ok = im.findBase(id)
	}
	return c, ok
}

// Base returns what the caches say of a layer of an image, whose diff ID is id.
func (im *Imports) Base(id layer.ID) (pack.Base, bool) {
	_, b, ok := im.findBase(id)
	return b, ok
}

func (im *Imports) findBase(id layer.ID) (*Import, pack.Base, bool) {
	for _, c := range im.All() {
		if !c.isLoaded() {
			continue
		}
		b, ok := c.base(id)
		im.mu.Lock()
		there, known := im.there[id]
		ok = ok && !c.bad && (there || !known)
		im.mu.Unlock()
		if ok {
			return c, b, true
		}
	}
	return nil, pack.Base{}, false
}

// BaseManifest returns the manifest of a layer of an image as a cache has it, in the form of package layer. Errors are those of Manifest.
func (im *Imports) BaseManifest(ctx context.Context, id layer.ID) (io.ReadCloser, error) {
	c, b, ok := im.findBase(id)
	if !ok {
		return nil, &GoneError{id, "", fs.ErrNotExist}
	}
	return im.manifest(ctx, c, id, b.Manifest)
}

// BaseFrom reports whether what is said of a layer of an image was found in the cache with these names.
func (im *Imports) BaseFrom(id layer.ID, repository, tag string) bool {
	c, _, ok := im.findBase(id)
	return ok && c.Repository.String() == repository && c.Tag == tag
}

// MountableFrom returns the name of the registry's repository that has the blobs of a layer, or "".
func (im *Imports) MountableFrom(id layer.ID) string {
	c, _, ok := im.find(id)
	if !ok {
		return ""
	}
	if r, ok := c.Repository.(*inRegistry); ok {
		return r.Name()
	}
	return ""
}

// failed makes the error of reading a layer's bytes.
func (im *Imports) failed(ctx context.Context, c *Import, id layer.ID, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &GoneError{id, c.Repository.String(), err}
}

// reading is the bytes of something of a layer.
type reading struct {
	io.Reader
	im    *Imports
	ctx   context.Context
	cache *Import
	id    layer.ID
	close func() error
}

func (r *reading) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = r.im.failed(r.ctx, r.cache, r.id, err)
	}
	return n, err
}

func (r *reading) Close() error { return r.close() }

// From reports whether a layer was found in the cache with these names.
func (im *Imports) From(id layer.ID, repository, tag string) bool {
	c, _, ok := im.find(id)
	return ok && c.Repository.String() == repository && c.Tag == tag
}

// Published returns what the cache with these names held when it was read, if the build imports it.
func (im *Imports) Published(ctx context.Context, repository, tag string) (*Head, bool) {
	caches, err := im.wait(ctx)
	if err != nil {
		return nil, false
	}
	for _, c := range caches {
		if c.err == nil && !c.head.inline && c.Repository.String() == repository && c.Tag == tag {
			return c.head, true
		}
	}
	return nil, false
}
