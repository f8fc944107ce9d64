package exporter

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/snapshot/blob"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Archive describes what WriteOCI and WriteOCIDir write in addition to the image.
type Archive struct {
	// Names are the image's full names, for the annotations that skopeo, containerd and docker load use.
	Names []string
	// DockerManifest adds the manifest.json of docker save, for engines that do not read OCI layouts.
	DockerManifest bool
}

// Archived is an image in an archive, and what is written in addition to it.
type Archived struct {
	*Assembled
	Archive
}

// saved is an entry of the manifest.json of docker save.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// files returns the files of an OCI layout of the images, except the blobs, ordered by name.
func files(images []Archived) ([]file, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var list []saved
	for _, a := range images {
		if len(a.Names) == 0 {
			index.Manifests = append(index.Manifests, a.Desc)
		}
		for _, name := range a.Names {
			d := a.Desc
			d.Annotations = map[string]string{}
			maps.Copy(d.Annotations, a.Desc.Annotations)
			d.Annotations["io.containerd.image.name"], d.Annotations[ocispec.AnnotationRefName] = name, tagOf(name)
			index.Manifests = append(index.Manifests, d)
		}
		if a.DockerManifest {
			if len(a.Manifests) != 1 {
				return nil, errors.New("an archive for docker load can only contain images for one platform: choose one, or write an OCI archive")
			}
			m := a.Manifests[0].Manifest
			s := saved{Config: blobPath(m.Config), RepoTags: familiar(a.Names), Layers: []string{}}
			for _, l := range m.Layers {
				s.Layers = append(s.Layers, blobPath(l))
			}
			list = append(list, s)
		}
	}
	var out []file
	add := func(name string, v any) error {
		data, err := json.Marshal(v)
		out = append(out, file{name, data})
		return err
	}
	err := errors.Join(
		add(ocispec.ImageIndexFile, index),
		add(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}),
	)
	if list == nil || err != nil {
		return out, err
	}
	return out, add("manifest.json", list)
}

// familiar returns names as docker save writes them: without docker.io/library.
func familiar(names []string) []string {
	var out []string
	for _, name := range names {
		if ref, err := imagename.Parse(name); err == nil {
			name = ref.FamiliarTagged()
		}
		out = append(out, name)
	}
	return out
}

type file struct {
	name string
	data []byte
}

// tagOf returns the tag of a full name.
func tagOf(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[i+1:]
	}
	return "latest"
}

func blobPath(d ocispec.Descriptor) string {
	return "blobs/" + d.Digest.Algorithm().String() + "/" + d.Digest.Encoded()
}

// blobsOf returns the blobs of the images without duplicates, ordered by digest.
func blobsOf(images []Archived) []ocispec.Descriptor {
	var all []ocispec.Descriptor
	for _, a := range images {
		all = append(all, a.Desc)
		for _, m := range slices.Concat(a.Manifests, a.Attestations) {
			all = append(all, m.Desc, m.Manifest.Config)
			all = append(all, m.Manifest.Layers...)
		}
	}
	slices.SortFunc(all, func(x, y ocispec.Descriptor) int { return strings.Compare(x.Digest.String(), y.Digest.String()) })
	return slices.CompactFunc(all, func(x, y ocispec.Descriptor) bool { return x.Digest == y.Digest })
}

// WriteOCI writes the image as the tar of an OCI image layout. All its blobs must be in the store.
func (b *Blobs) WriteOCI(ctx context.Context, w io.Writer, a *Assembled, ar Archive) error {
	return b.WriteArchive(ctx, w, []Archived{{a, ar}})
}

// Sending says what SendArchive leaves out, and who is told how it goes on. The zero value leaves out nothing and tells nobody.
type Sending struct {
	// Omit are blobs that the reader of the archive has.
	Omit map[digest.Digest]bool
	// Sent is told how many bytes of a blob were written.
	Sent func(desc ocispec.Descriptor, n int64)
}

// WriteArchive is like WriteOCI for several images. A blob that they share is written once.
func (b *Blobs) WriteArchive(ctx context.Context, w io.Writer, images []Archived) error {
	return b.SendArchive(ctx, w, images, Sending{})
}

// SendArchive is like WriteArchive for a reader that has some of the blobs.
func (b *Blobs) SendArchive(ctx context.Context, w io.Writer, images []Archived, s Sending) error {
	files, err := files(images)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(ctxio.Writer(ctx, w))
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: entryTime}); err != nil {
			return err
		}
	}
	buf := make([]byte, blockSize)
	for _, d := range blobsOf(images) {
		if s.Omit[d.Digest] {
			continue
		}
		if err := tw.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: blobPath(d), Mode: 0o644, Size: d.Size, ModTime: entryTime,
		}); err != nil {
			return err
		}
		if err := b.copyBlob(s.counting(tw, d), d, buf); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := tw.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.data)), ModTime: entryTime,
		}); err != nil {
			return err
		}
		if _, err := tw.Write(f.data); err != nil {
			return err
		}
	}
	return tw.Close()
}

// counting returns a writer of a blob to w that tells Sent.
func (s Sending) counting(w io.Writer, d ocispec.Descriptor) io.Writer {
	if s.Sent == nil {
		return w
	}
	return &countingWriter{w: w, sent: func(n int64) { s.Sent(d, n) }}
}

type countingWriter struct {
	w    io.Writer
	n    int64
	sent func(n int64)
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.sent(c.n)
	return n, err
}

func (b *Blobs) copyBlob(w io.Writer, d ocispec.Descriptor, buf []byte) error {
	r, err := b.Store.Open(d)
	if err != nil {
		return err
	}
	defer r.Close()
	to := blob.Behind(w)
	_, err = io.CopyBuffer(to, struct{ io.Reader }{r}, buf)
	return cmp.Or(err, to.End(err == nil))
}

// WriteOCIDir writes the image as an OCI image layout to a directory, which is created if it does not exist. Existing blobs are
// kept, and the index is replaced last. Symbolic links in the directory are not followed.
func (b *Blobs) WriteOCIDir(ctx context.Context, dir string, a *Assembled, ar Archive) error {
	images := []Archived{{a, ar}}
	files, err := files(images)
	if err != nil {
		return err
	}
	top, err := OpenDir(dir)
	if err != nil {
		return err
	}
	defer top.Close()
	blobs, err := subdir(top, "blobs")
	if err != nil {
		return err
	}
	defer blobs.Close()
	sums, err := subdir(blobs, "sha256")
	if err != nil {
		return err
	}
	defer sums.Close()
	buf := make([]byte, blockSize)
	for _, d := range blobsOf(images) {
		if isBlob(ctx, sums, d, buf) {
			continue
		}
		if err := atomicfile.WriteAt(sums, d.Digest.Encoded(), func(w io.Writer) error {
			return b.copyBlob(ctxio.Writer(ctx, w), d, buf)
		}); err != nil {
			return err
		}
	}
	slices.Reverse(files) // the index is written last, after everything it refers to
	for _, f := range files {
		err := atomicfile.WriteAt(top, f.name, func(w io.Writer) error {
			_, err := w.Write(f.data)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// subdir opens a directory in another one, and creates it if it does not exist.
func subdir(dir *os.File, name string) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o755); err != nil && err != unix.EEXIST {
		return nil, &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// isBlob reports whether a file has the bytes of a blob. After a crash of the host, a file may have only the right size.
func isBlob(ctx context.Context, dir *os.File, d ocispec.Descriptor, buf []byte) bool {
	fd, err := unix.Openat(int(dir.Fd()), d.Digest.Encoded(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), d.Digest.Encoded())
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() != d.Size {
		return false
	}
	return cas.Verify(ctx, f, d, buf) == nil
}

// WriteFile writes a file by renaming a temporary file in the same directory, so that an incomplete file is never visible; an
// existing file is replaced. A path that is not a regular file, or leads to an open one such as /dev/stdout, is written to
// directly. The path is resolved once.
func WriteFile(path string, write func(io.Writer) error) error {
	above, name := split(path)
	dir, err := openDir(unix.AT_FDCWD, above, above)
	if err != nil {
		return err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return atomicfile.WriteAt(dir, name, write)
	}
	there := os.NewFile(uintptr(fd), path)
	defer there.Close()
	switch info, err := there.Stat(); {
	case err != nil:
		return err
	case info.IsDir():
		return &os.PathError{Op: "write", Path: path, Err: errors.New("it is a directory")}
	case info.Mode().IsRegular() && !magic(dir, name):
		return atomicfile.WriteAt(dir, name, write)
	}
	// Open the file that was checked, even if the path now leads elsewhere.
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_WRONLY, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: errors.Unwrap(err)}
	}
	return errors.Join(write(f), f.Close())
}

// magic reports whether a name leads through a link of proc(5) to an open file of the process, such as /dev/stdout. That link is
// not replaced, even if it leads to a regular file.
func magic(dir *os.File, name string) bool {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err == nil {
		unix.Close(fd)
	}
	return err == unix.ELOOP
}
