package remote

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Dir is an OCI image layout in a directory (image-spec, "OCI Image Layout Specification") as a Repository. No symbolic link leads out of
// the directory.
type Dir struct {
	root  *os.Root
	shown string
}

// lockName is the file that is locked while index.json is replaced.
const lockName = "index.lock"

// maxIndex bounds index.json, in bytes.
const maxIndex = 4 << 20

// OpenDir opens a directory, whose name the user knows as shown. The error wraps fs.ErrNotExist if it is not there.
func OpenDir(dir, shown string) (*Dir, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Dir{root, shown}, nil
}

// CreateDir is OpenDir, and makes the directory and the layout in it where there is none.
func CreateDir(dir, shown string) (*Dir, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	d, err := OpenDir(dir, shown)
	if err != nil {
		return nil, err
	}
	err = d.root.MkdirAll("blobs/sha256", 0o755)
	if _, absent := d.root.Lstat(ocispec.ImageLayoutFile); err == nil && errors.Is(absent, fs.ErrNotExist) {
		layout, _ := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}) // strings can be encoded
		err = d.replace(ocispec.ImageLayoutFile, layout)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Close closes the directory.
func (d *Dir) Close() error { return d.root.Close() }

func (d *Dir) String() string { return d.shown }

// index reads index.json. It is empty where there is none.
func (d *Dir) index() (ocispec.Index, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	data, err := d.readFile(ocispec.ImageIndexFile, maxIndex)
	if errors.Is(err, fs.ErrNotExist) {
		return index, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &index)
	}
	if err != nil {
		return index, fmt.Errorf("read index.json of %s: %w", d.shown, err)
	}
	return index, nil
}

func (d *Dir) readFile(name string, limit int64) ([]byte, error) {
	f, err := d.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return data, err
}

// open opens a regular file.
func (d *Dir) open(name string) (*os.File, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0) // a fifo would block
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func tagOf(m ocispec.Descriptor) string { return m.Annotations[ocispec.AnnotationRefName] }

// manifest implements imageRepository.
func (d *Dir) manifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return readAll(ctx, d, desc)
}

// Get implements Repository. A digest, "sha256:…", is a tag as well.
func (d *Dir) Get(_ context.Context, tag string) ([]byte, error) {
	index, err := d.index()
	if err != nil {
		return nil, err
	}
	for _, m := range index.Manifests {
		if tagOf(m) != tag && string(m.Digest) != tag {
			continue
		}
		name, err := blobName(m.Digest)
		if err != nil {
			return nil, err
		}
		data, err := d.readFile(name, maxManifest)
		if err == nil && digest.FromBytes(data) != m.Digest {
			err = &cas.MismatchError{Where: d.shown, Digest: m.Digest, Size: m.Size, GotDigest: digest.FromBytes(data), GotSize: int64(len(data))}
		}
		return data, err
	}
	return nil, &fs.PathError{Op: "read", Path: d.shown + ":" + tag, Err: fs.ErrNotExist}
}

func blobName(dg digest.Digest) (string, error) {
	if _, err := cas.ParseDigest(string(dg)); err != nil {
		return "", err
	}
	return path.Join("blobs/sha256", dg.Encoded()), nil
}

// Set implements Repository.
func (d *Dir) Set(ctx context.Context, tag, mediaType string, data []byte) error {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := d.Put(ctx, desc, bytesOf(data)); err != nil {
		return err
	}
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	return d.update(func(index *ocispec.Index) {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(m ocispec.Descriptor) bool { return tagOf(m) == tag })
		index.Manifests = append(index.Manifests, desc)
	})
}

// Remove implements Repository.
func (d *Dir) Remove(_ context.Context, tag string, manifest digest.Digest) error {
	return d.update(func(index *ocispec.Index) {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(m ocispec.Descriptor) bool { return tagOf(m) == tag && m.Digest == manifest })
	})
}

// update replaces index.json, one process at a time.
func (d *Dir) update(change func(*ocispec.Index)) error {
	l, err := d.root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := unix.Flock(int(l.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", d.shown, err)
	}
	index, err := d.index()
	if err != nil {
		return err
	}
	change(&index)
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return d.replace(ocispec.ImageIndexFile, data)
}

// Sweep removes blobs that no manifest names and that are older than settleTime: a writer may have put the others for a manifest that is to
// come.
func (d *Dir) Sweep(context.Context) error {
	named := map[string]bool{}
	index, err := d.index()
	if err != nil {
		return err
	}
	for _, m := range index.Manifests {
		named[m.Digest.Encoded()] = true
		name, err := blobName(m.Digest)
		if err != nil {
			return err
		}
		data, err := d.readFile(name, maxManifest)
		if err != nil {
			return fmt.Errorf("read a manifest of %s, before anything is removed: %w", d.shown, err)
		}
		var manifest struct {
			ocispec.Manifest
			Manifests []ocispec.Descriptor `json:"manifests"`
		}
		if err := json.Unmarshal(data, &manifest); err != nil {
			return fmt.Errorf("read a manifest of %s, before anything is removed: %w", d.shown, err)
		}
		if len(manifest.Manifests) > 0 {
			return nil // an index of somebody else's, of which not all is known
		}
		for _, b := range append(manifest.Layers, manifest.Config) {
			named[b.Digest.Encoded()] = true
		}
	}
	blobs, err := d.root.Open("blobs/sha256")
	if err != nil {
		return err
	}
	defer blobs.Close()
	entries, err := blobs.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || named[e.Name()] || time.Since(info.ModTime()) < settleTime {
			continue
		}
		if err := d.root.Remove(path.Join("blobs/sha256", e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Tags implements Repository.
func (d *Dir) Tags(_ context.Context, prefix string) ([]string, error) {
	index, err := d.index()
	if err != nil {
		return nil, err
	}
	var tags []string
	for _, m := range index.Manifests {
		if tag := tagOf(m); tag != "" && strings.HasPrefix(tag, prefix) {
			tags = append(tags, tag)
		}
	}
	return tags, nil
}

// Open implements Repository.
func (d *Dir) Open(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	name, err := blobName(desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := d.open(name)
	if err != nil {
		return nil, err
	}
	return cas.VerifyReader(f, desc, d.shown), nil
}

// Put implements Repository.
func (d *Dir) Put(ctx context.Context, desc ocispec.Descriptor, open func() (io.ReadCloser, error)) error {
	name, err := blobName(desc.Digest)
	if err != nil {
		return err
	}
	if info, err := d.root.Lstat(name); err == nil && info.Mode().IsRegular() && info.Size() == desc.Size {
		return nil
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	return d.write(name, func(w io.Writer) error {
		_, err := io.Copy(w, ctxio.Reader(ctx, cas.VerifyReader(r, desc, "the blob")))
		return err
	})
}

func (d *Dir) replace(name string, data []byte) error {
	return d.write(name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// write replaces a file by what write writes, by way of another beside it.
func (d *Dir) write(name string, write func(io.Writer) error) (err error) {
	temp := path.Join(path.Dir(name), ".kiln-"+rand.Text())
	f, err := d.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if err = errors.Join(write(f), f.Close()); err == nil {
		err = d.root.Rename(temp, name)
	}
	if err != nil {
		_ = d.root.Remove(temp) // the first error says more
	}
	return err
}
