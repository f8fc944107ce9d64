// Package bucket keeps caches in services that store objects by key, such as S3 and Azure Blob Storage: it says under which keys a cache's
// blobs and manifests are, and when what nothing refers to may be removed. How a service is asked is that of Objects.
package bucket

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/internal/cas"
)

const (
	// MaxTouch is how old a blob may become before it is touched when a writer relies on it; it is also the default.
	MaxTouch = 24 * time.Hour
	// sweepAge is how old a blob must be that Sweep removes. It leaves a writer a day between its Put and its manifest.
	sweepAge = 2 * MaxTouch
	// maxManifest bounds a manifest in bytes, as package remote does.
	maxManifest = 4 << 20
	// maxName bounds the name of a cache in bytes: keys have at most 1,024, and the names of writers' entries are longer.
	maxName = 200
	// maxPrefix bounds each of the prefixes of keys in bytes.
	maxPrefix = 250
)

// Objects is a service that keeps objects by key. Errors for what is not there wrap fs.ErrNotExist; that of a bucket or container that does
// not exist does not. It is safe for concurrent use.
type Objects interface {
	// Stat returns what is known of an object without reading it.
	Stat(ctx context.Context, key string) (Object, error)
	// Read returns the bytes of an object from an offset on. An error that is temporary for fetch.Transient makes the caller go on with
	// another Read.
	Read(ctx context.Context, key string, offset int64) (io.ReadCloser, error)
	// Write makes an object of the bytes that open returns, which are those of desc: it is there as a whole, or as it was. open may be
	// called several times.
	Write(ctx context.Context, key string, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error
	// Touch makes an object as old as if it had been written now.
	Touch(ctx context.Context, key string) error
	// List calls f for the objects whose keys begin with prefix, until f returns an error, which it returns.
	List(ctx context.Context, prefix string, f func(Object) error) error
	// Remove removes an object; it may leave one that has changed since o was returned.
	Remove(ctx context.Context, o Object) error
	// Clean removes what writers that ended early have left below prefix, if it was begun before a time.
	Clean(ctx context.Context, prefix string, before time.Time) error
}

// Object is what a service says of an object.
type Object struct {
	Key      string
	Size     int64     // in bytes
	Modified time.Time // when it was written or touched
	ETag     string    // of its content or version; "" if it is not known
}

// Layout says where in a bucket a cache is. Its zero value needs Name.
type Layout struct {
	// Prefix begins every key, and Blobs and Manifests follow it.
	Prefix, Blobs, Manifests string
	// Name is that of the cache.
	Name string
	// Touch is how old a blob may become before a writer that relies on it touches it; MaxTouch for 0.
	Touch time.Duration
}

// The defaults of Layout, as with other builders.
const (
	DefaultBlobs     = "blobs/"
	DefaultManifests = "manifests/"
)

// Check returns what is wrong with a layout.
func (l Layout) Check() error {
	for _, s := range []string{l.Prefix, l.Blobs, l.Manifests} {
		if len(s) > maxPrefix {
			return fmt.Errorf("a prefix of keys has %d bytes, and the limit is %d", len(s), maxPrefix)
		}
		if strings.HasPrefix(s, "/") || slices.ContainsFunc([]rune(s), unusable) {
			return fmt.Errorf("%q is no prefix of keys: it begins with a slash, or has a space, a comma or a character that is not printed", s)
		}
	}
	if err := checkName(l.Name); err != nil {
		return err
	}
	if l.Touch < 0 || l.Touch > MaxTouch {
		return fmt.Errorf("touch_refresh=%s: it is at most %s, since kiln cache prune removes unused blobs that are older than twice that",
			l.Touch, MaxTouch)
	}
	return nil
}

// checkName returns what is wrong with the name of a cache.
func checkName(name string) error {
	switch {
	case name == "" || len(name) > maxName || slices.ContainsFunc([]rune(name), unusable):
		return fmt.Errorf("name=%s: a name has 1 to %d bytes, without spaces and commas", name, maxName)
	case strings.Contains(name, ".kiln-"):
		return fmt.Errorf("name=%s: names with .kiln- are those of writers' entries", name)
	case strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/") || slices.ContainsFunc(strings.Split(name, "/"), dots):
		return fmt.Errorf("name=%s: a name neither begins nor ends with a slash, and has no . or .. between slashes", name)
	}
	return nil
}

func dots(part string) bool { return part == "" || part == "." || part == ".." }

func unusable(r rune) bool { return r <= ' ' || r == ',' || r == ';' || r == 0x7f || r == '\uFFFD' }

// Repository keeps caches in a bucket. It implements remote.Repository.
type Repository struct {
	objects Objects
	layout  Layout
	shown   string
}

// New returns the repository of a bucket; shown is its name for messages. The layout must have passed Check.
func New(objects Objects, layout Layout, shown string) *Repository {
	if layout.Touch == 0 {
		layout.Touch = MaxTouch
	}
	return &Repository{objects, layout, shown}
}

func (r *Repository) String() string { return r.shown }

func (r *Repository) manifest(tag string) string { return r.layout.Prefix + r.layout.Manifests + tag }

// blobs is the folder of blobs by hexadecimal digest. Other builders call a blob "sha256:…" in the same place.
func (r *Repository) blobs() string { return r.layout.Prefix + r.layout.Blobs + "sha256/" }

func (r *Repository) blob(d digest.Digest) (string, error) {
	if _, err := cas.ParseDigest(string(d)); err != nil {
		return "", err
	}
	return r.blobs() + d.Encoded(), nil
}

// Get implements remote.Repository.
func (r *Repository) Get(ctx context.Context, tag string) ([]byte, error) {
	return r.read(ctx, r.manifest(tag))
}

func (r *Repository) read(ctx context.Context, key string) ([]byte, error) {
	body := NewReader(ctx, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return r.objects.Read(ctx, key, offset)
	})
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	if err == nil && len(data) > maxManifest {
		err = fmt.Errorf("%s has more than %d bytes", key, maxManifest)
	}
	return data, err
}

// Set implements remote.Repository.
func (r *Repository) Set(ctx context.Context, tag, mediaType string, data []byte) error {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return r.objects.Write(ctx, r.manifest(tag), desc, Bytes(data))
}

// Bytes returns a function that opens data.
func Bytes(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

// Tags implements remote.Repository.
func (r *Repository) Tags(ctx context.Context, prefix string) ([]string, error) {
	var tags []string
	err := r.objects.List(ctx, r.manifest(prefix), func(o Object) error {
		tags = append(tags, strings.TrimPrefix(o.Key, r.manifest("")))
		return nil
	})
	return tags, err
}

// Remove implements remote.Repository.
func (r *Repository) Remove(ctx context.Context, tag string, manifest digest.Digest) error {
	o, err := r.objects.Stat(ctx, r.manifest(tag))
	if err != nil {
		return err
	}
	data, err := r.Get(ctx, tag)
	if err != nil || digest.FromBytes(data) != manifest {
		return err
	}
	return r.objects.Remove(ctx, o)
}

// Open implements remote.Repository.
func (r *Repository) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	key, err := r.blob(desc.Digest)
	if err != nil {
		return nil, err
	}
	body := NewReader(ctx, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return r.objects.Read(ctx, key, offset)
	})
	if err := body.Begin(); err != nil {
		return nil, err
	}
	return cas.VerifyReader(body, desc, r.shown), nil
}

// Put implements remote.Repository. A blob that is there and older than Layout.Touch is touched, so that Sweep leaves it.
func (r *Repository) Put(ctx context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	if desc.Digest == ocispec.DescriptorEmptyJSON.Digest {
		return nil // the config of every cache, which nobody reads
	}
	key, err := r.blob(desc.Digest)
	if err != nil {
		return err
	}
	err = r.keep(ctx, key, desc.Size)
	if errors.Is(err, fs.ErrNotExist) {
		err = r.objects.Write(ctx, key, desc, open)
	}
	return err
}

// keep touches an object that is old. The error wraps fs.ErrNotExist if it is not there, has another size, or remains old.
func (r *Repository) keep(ctx context.Context, key string, size int64) error {
	young := func() (bool, error) {
		o, err := r.objects.Stat(ctx, key)
		if err == nil && o.Size != size {
			err = &fs.PathError{Op: "use", Path: key, Err: fs.ErrNotExist}
		}
		return err == nil && time.Since(o.Modified) < r.layout.Touch, err
	}
	if ok, err := young(); ok || err != nil {
		return err
	}
	if err := r.objects.Touch(ctx, key); err != nil {
		return err
	}
	ok, err := young() // not every service that calls itself S3 has another time then
	if err == nil && !ok {
		err = &fs.PathError{Op: "touch", Path: key, Err: fs.ErrNotExist}
	}
	return err
}

// Keep implements remote.Keeper.
func (r *Repository) Keep(ctx context.Context, desc ocispec.Descriptor) error {
	key, err := r.blob(desc.Digest)
	if err != nil {
		return err
	}
	return r.keep(ctx, key, desc.Size)
}

// Sweep removes blobs that no manifest names, and that are older than sweepAge: a writer that relies on one has touched it later than that.
// Blobs are listed after the manifests are read, and looked at once more before they are removed.
func (r *Repository) Sweep(ctx context.Context) error {
	old := time.Now().Add(-sweepAge)
	var manifests []string
	err := r.objects.List(ctx, r.manifest(""), func(o Object) error {
		manifests = append(manifests, o.Key)
		return nil
	})
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for _, key := range manifests {
		blobs, err := r.named(ctx, key)
		if err != nil {
			return fmt.Errorf("read %s, before anything is removed: %w", key, err)
		}
		maps.Copy(named, blobs)
	}
	var unused []Object
	err = r.objects.List(ctx, r.blobs(), func(o Object) error {
		if name := strings.TrimPrefix(o.Key, r.blobs()); isHex(name) && !named[name] && o.Modified.Before(old) {
			unused = append(unused, o)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, o := range unused {
		now, err := r.objects.Stat(ctx, o.Key)
		if err == nil && now.Modified.Before(old) {
			err = r.objects.Remove(ctx, now)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return r.objects.Clean(ctx, r.layout.Prefix, old)
}

func isHex(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }

// named returns the blobs that a manifest names. What is no cache of kiln names none of kiln's blobs.
func (r *Repository) named(ctx context.Context, key string) (map[string]bool, error) {
	data, err := r.read(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	if m.ArtifactType != pack.ArtifactType {
		if strings.HasPrefix(m.ArtifactType, "application/vnd.kiln.") {
			return nil, fmt.Errorf("it is of type %s: %w", m.ArtifactType, pack.ErrVersion)
		}
		return nil, nil
	}
	blobs := map[string]bool{}
	for _, b := range m.Layers {
		blobs[strings.TrimPrefix(string(b.Digest), "sha256:")] = true
	}
	return blobs, nil
}
