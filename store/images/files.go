package images

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/ctxio"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/snapshot"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxLinks is how many symbolic links may lead to a path: what Linux follows (path_resolution(7)).
const maxLinks = 40

// tree is the root file system of an image, read from the entries of its layers.
type tree struct {
	*layer.Stack
	set *Images
	job *snapshot.Job
	// blobs are those of the layers by their IDs.
	blobs map[layer.ID]ocispec.Descriptor
}

// tree reads the entries of an image's layers, of which those that kiln knows already are not read. The caller closes the job.
func (set *Images) tree(ctx context.Context, job *snapshot.Job, name, platform string) (*tree, error) {
	m, config, err := set.find(ctx, name, platform)
	if err != nil {
		return nil, err
	}
	if config.OS == "windows" {
		return nil, &input.Error{Err: fmt.Errorf("%s is an image for Windows, whose files kiln does not list", name)}
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("%s has %d layers and %d diff IDs", name, len(m.Layers), len(config.RootFS.DiffIDs))
	}
	t := &tree{set: set, job: job, blobs: map[layer.ID]ocispec.Descriptor{}}
	var parts []layer.Part
	for i, l := range m.Layers {
		id := layer.ID(config.RootFS.DiffIDs[i].Encoded())
		t.blobs[id] = l
		manifest, err := job.Manifest(ctx, id)
		if err != nil {
			if err = t.read(ctx, id, func(tarball io.Reader) error { return job.Index(ctx, id, tarball) }); err == nil {
				manifest, err = job.Manifest(ctx, id)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("read layer %s of %s: %w", l.Digest, name, err)
		}
		parts = append(parts, layer.Part{ID: id, Manifest: manifest})
	}
	t.Stack = layer.NewStack(parts)
	return t, nil
}

// read gives f the tar of a layer to read, which fails at its end if it is not the one that the image's config names.
func (t *tree) read(ctx context.Context, id layer.ID, f func(tarball io.Reader) error) error {
	blob, err := t.set.store.Open(t.blobs[id])
	if err != nil {
		return err
	}
	defer blob.Close()
	compressed := ctxio.Reader(ctx, blob)
	plain, err := layer.UncompressVerified(compressed, string(id))
	if err != nil {
		return err
	}
	defer plain.Close()
	return f(plain)
}

// resolve returns the entry that a path leads to, through links of the image to paths of the image. The last component is followed only
// if last is true.
func (t *tree) resolve(name string, last bool) (layer.Entry, error) {
	rest := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	at, links := "", 0
	entry := layer.Entry{Type: layer.Dir, Mode: 0o755}
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = layer.Parent(at)
			entry = layer.Entry{Path: at, Type: layer.Dir, Mode: 0o755}
			continue
		}
		e, ok, err := t.Lookup(strings.TrimPrefix(at+"/"+part, "/"))
		if err != nil {
			return e, err
		}
		if !ok || entry.Type != layer.Dir {
			return e, &input.Error{Err: fmt.Errorf("the image has no %s", path.Clean("/"+name))}
		}
		if e.Type == layer.Symlink && (last || len(rest) > 0) {
			if links++; links > maxLinks {
				return e, &input.Error{Err: fmt.Errorf("%s: too many symbolic links", name)}
			}
			if strings.HasPrefix(e.Link, "/") {
				at = ""
				entry = layer.Entry{Type: layer.Dir, Mode: 0o755}
			}
			rest = append(strings.Split(e.Link, "/"), rest...)
			continue
		}
		at, entry = e.Path, e
	}
	return entry, nil
}

// CopyOptions are options of Copy. The zero value is valid.
type CopyOptions struct {
	// Platform chooses from images for several; "" is the host's.
	Platform string
	// Follow copies what a symbolic link at the path leads to in the image, instead of the link.
	Follow bool
	// Tar, if it is not nil, gets a tar of the files in place of a directory.
	Tar io.Writer
}

// Copy writes a path of an image, a file or a directory with all that is in it, to dest as docker cp does: into a directory that exists
// under its own name, or else under the name of dest. A path that ends with "/." means the content of a directory. Files belong to the user;
// of what an output of type local would leave out the result tells.
func (set *Images) Copy(ctx context.Context, image, name, dest string, o CopyOptions) (dropped exporter.Dropped, err error) {
	work, err := set.root.Work()
	if err != nil {
		return dropped, err
	}
	job := work.Layers.Job()
	defer func() { err = errors.Join(err, job.Close()) }()
	t, err := set.tree(ctx, job, image, o.Platform)
	if err != nil {
		return dropped, err
	}
	content := strings.HasSuffix(name, "/.") || path.Clean("/"+name) == "/"
	entry, err := t.resolve(name, o.Follow || strings.HasSuffix(name, "/") || content)
	if err != nil {
		return dropped, err
	}
	if content && entry.Type != layer.Dir {
		return dropped, &input.Error{Err: fmt.Errorf("%s is not a directory", name)}
	}
	s := &subtree{tree: t, top: entry, name: path.Base(path.Clean("/" + name)), files: map[layer.Digest]string{}}
	if content {
		s.name = ""
	}
	if o.Tar == nil {
		if dest, err = s.place(dest); err != nil {
			return dropped, err
		}
	}
	if err := s.extract(ctx, work.Scratch.Path()); err != nil {
		return dropped, err
	}
	if o.Tar != nil {
		return dropped, exporter.WriteTar(ctx, o.Tar, nil, exporter.Root{Tree: s})
	}
	return exporter.WriteDir(ctx, dest, s, exporter.DirOptions{})
}

// subtree is what Copy copies as a root file system of its own. It implements layer.Tree.
type subtree struct {
	*tree
	// top is what was found at the path, and name its name here: "" for a directory whose content is the root.
	top  layer.Entry
	name string
	// files are the paths of the copies of files' bytes.
	files map[layer.Digest]string
}

// place returns the directory that a copy to dest is written to, and sets its name there. If dest is a symbolic link to a file, that file
// is replaced, as docker cp does.
func (s *subtree) place(dest string) (string, error) {
	info, err := os.Stat(dest)
	if link, linkErr := os.Lstat(dest); linkErr == nil && link.Mode()&os.ModeSymlink != 0 {
		if errors.Is(err, os.ErrNotExist) {
			return "", &input.Error{Err: fmt.Errorf("%s is a symbolic link to a file that does not exist", rootdir.Shown(dest))}
		}
		if err == nil && info.Mode().IsRegular() {
			if dest, err = filepath.EvalSymlinks(dest); err != nil {
				return "", err
			}
		}
	}
	switch {
	case err == nil && info.IsDir():
		return dest, nil
	case err == nil && !info.Mode().IsRegular():
		return "", &input.Error{Err: fmt.Errorf("%s is a device, a named pipe or a socket, which is not replaced", rootdir.Shown(dest))}
	case err == nil && s.top.Type == layer.Dir:
		return "", &input.Error{Err: fmt.Errorf("%s is a file, and what is copied a directory", rootdir.Shown(dest))}
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return "", err
	case s.top.Type == layer.Dir:
		s.name = ""
		return dest, nil
	case err != nil && strings.HasSuffix(dest, "/"):
		return "", &input.Error{Err: fmt.Errorf("the directory %s does not exist", rootdir.Shown(dest))}
	}
	dir, name := path.Split(dest)
	s.name = name
	if info, err := os.Stat(path.Clean(dir)); err != nil || !info.IsDir() {
		return "", &input.Error{Err: fmt.Errorf("the directory %s does not exist", rootdir.Shown(dir))}
	}
	return path.Clean(dir), nil
}

// wanted are the files that are copied from one layer.
type wanted struct {
	// links are the LinkIDs of the files, sizes their sizes by digest, of those that have not been found yet.
	links map[string]bool
	sizes map[layer.Digest]int64
}

// extract copies the bytes of the files from the layers' tars to a directory.
func (s *subtree) extract(ctx context.Context, dir string) error {
	layers := map[layer.ID]*wanted{}
	var walk func(at string) error
	walk = func(at string) error {
		list, err := s.List(at)
		if err != nil {
			return err
		}
		for _, e := range list {
			if err := ctxio.Ended(ctx); err != nil {
				return err
			}
			if id, _, ok := strings.Cut(e.LinkID, "/"); ok {
				w := layers[layer.ID(id)]
				if w == nil {
					w = &wanted{links: map[string]bool{}, sizes: map[layer.Digest]int64{}}
					layers[layer.ID(id)] = w
				}
				w.links[e.LinkID], w.sizes[e.Digest] = true, e.Size
			}
			if e.Type == layer.Dir {
				if err := walk(e.Path); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := walk(""); err != nil {
		return err
	}
	for id, w := range layers {
		if err := s.extractLayer(ctx, dir, id, w); err != nil {
			return fmt.Errorf("read layer %s: %w", s.blobs[id].Digest, err)
		}
	}
	return nil
}

// extractLayer copies files from the tar of one layer. It takes the entries with the paths of the files. If the tar replaces an entry after
// it has linked to it, a file has the bytes of an entry with another path: then the tar is read again for entries of that size.
func (s *subtree) extractLayer(ctx context.Context, dir string, id layer.ID, w *wanted) error {
	err := s.take(ctx, dir, id, w, func(e *layer.Entry) bool { return w.links[string(id)+"/"+e.Path] })
	if err != nil || len(w.sizes) == 0 {
		return err
	}
	sizes := map[int64]bool{}
	for _, size := range w.sizes {
		sizes[size] = true
	}
	return s.take(ctx, dir, id, w, func(e *layer.Entry) bool { return sizes[e.Size] })
}

// take copies those files of a layer's tar to a directory for which may returns true and whose bytes are wanted.
func (s *subtree) take(ctx context.Context, dir string, id layer.ID, w *wanted, may func(*layer.Entry) bool) error {
	return s.read(ctx, id, func(tarball io.Reader) error {
		r := layer.NewReader(tarball, s.job.Limit())
		for {
			e, err := r.Next()
			if err == io.EOF {
				_, err = io.Copy(io.Discard, tarball) // the end tells whether the bytes are those of the digest
				return err
			}
			if err != nil {
				return err
			}
			if e.Type != layer.File || !may(&e) {
				continue
			}
			file, sum, err := keep(dir, r)
			if err != nil {
				return err
			}
			if _, ok := w.sizes[sum]; !ok {
				if err := os.Remove(file); err != nil {
					return err
				}
				continue
			}
			delete(w.sizes, sum)
			s.files[sum] = file
		}
	})
}

// keep writes the content of r to a file in a directory, and returns its path and digest.
func keep(dir string, r io.Reader) (file string, sum layer.Digest, err error) {
	f, err := os.CreateTemp(dir, "copy-")
	if err != nil {
		return "", sum, err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), r)
	return f.Name(), layer.Digest(h.Sum(nil)), errors.Join(err, f.Close())
}

// inside returns the path in the image of a path here.
func (s *subtree) inside(name string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(name, s.name), "/")
	return strings.Trim(s.top.Path+"/"+rest, "/")
}

// List implements layer.Tree.
func (s *subtree) List(dir string) ([]layer.Entry, error) {
	if dir == "" && s.name != "" {
		top := s.top
		top.Path = s.name
		return []layer.Entry{top}, nil
	}
	list, err := s.Stack.List(s.inside(dir))
	for i := range list {
		list[i].Path = strings.TrimPrefix(dir+"/"+list[i].Name(), "/")
	}
	return list, err
}

// Lookup implements layer.Tree.
func (s *subtree) Lookup(name string) (layer.Entry, bool, error) {
	if name == "" && s.name != "" {
		return layer.Entry{Type: layer.Dir, Mode: 0o755}, true, nil
	}
	e, ok, err := s.Stack.Lookup(s.inside(name))
	e.Path = name
	return e, ok, err
}

// Open implements layer.Tree.
func (s *subtree) Open(e *layer.Entry) (io.ReadCloser, error) {
	found, ok, err := s.Lookup(e.Path)
	if err != nil {
		return nil, err
	}
	if file := s.files[found.Digest]; ok && file != "" {
		return os.Open(file)
	}
	return nil, fmt.Errorf("the image's layer lacks the file %s", e.Path)
}
