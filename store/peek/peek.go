// Package peek looks into a root directory that is not open, for completion in shells: it creates, locks and changes nothing, waits for
// nobody, and may be called while builds work there. What it returns may be out of date at once.
package peek

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/blob"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxLayers is how many layers of a root directory are looked through for those of an image.
const maxLayers = 4096

// Images returns the images of a root directory.
func Images(root string) ([]cas.Image, error) { return cas.List(root) }

// Paths returns the names of what is in a directory of an image, those of directories with a slash at the end, as far as the root directory
// has lists of the layers' files: of a layer that no step has used it may not have one. Links are not followed. The error says that there
// is no such image, or that it cannot be read.
func Paths(root, image, dir string) ([]string, error) {
	desc, err := find(root, image)
	if err != nil {
		return nil, err
	}
	config, err := configOf(root, desc)
	if err != nil {
		return nil, err
	}
	stack, closeAll := stackOf(root, config)
	defer closeAll()
	entries, err := stack.List(strings.Trim(dir, "/"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if e.Type == layer.Dir {
			name += "/"
		}
		names = append(names, name)
	}
	return names, nil
}

// find returns what an image name or the beginning of an ID refers to.
func find(root, image string) (ocispec.Descriptor, error) {
	all, err := cas.List(root)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	full := ""
	if ref, err := imagename.Parse(image); err == nil {
		full = ref.String()
	}
	for _, img := range all {
		if img.Name == full || len(image) >= 4 && strings.HasPrefix(img.Desc.Digest.Encoded(), strings.TrimPrefix(image, "sha256:")) {
			return img.Desc, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("no image %q", image)
}

// configOf returns the config of a manifest; of an index that of the image for this host, or else of the first that is there.
func configOf(root string, desc ocispec.Descriptor) (config ocispec.Image, err error) {
	if cas.IsIndex(desc.MediaType) {
		var index ocispec.Index
		if err := read(root, desc, &index); err != nil {
			return config, err
		}
		images := slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			return !cas.IsManifest(d.MediaType) || !attestation.IsImage(d)
		})
		host := llb.Host()
		i := slices.IndexFunc(images, func(d ocispec.Descriptor) bool {
			return d.Platform != nil && d.Platform.OS == host.OS && d.Platform.Architecture == host.Architecture
		})
		if len(images) == 0 {
			return config, errors.New("the index has no image")
		}
		desc = images[max(i, 0)]
	}
	var m ocispec.Manifest
	if err := read(root, desc, &m); err != nil {
		return config, err
	}
	return config, read(root, m.Config, &config)
}

// read reads a blob, which is JSON.
func read(root string, desc ocispec.Descriptor, into any) error {
	if _, err := cas.ParseDigest(string(desc.Digest)); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(rootdir.Path(root, rootdir.Blobs), desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
	if err != nil {
		return err
	}
	defer f.Close() // it was only read
	data, err := cas.ReadAll(cas.VerifyReader(f, desc, root), desc, 0)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// stackOf returns the layers of an image that have lists of their files, and what closes these.
func stackOf(root string, config ocispec.Image) (*layer.Stack, func()) {
	var parts []layer.Part
	own := ownLayers(root, config)
	for _, id := range config.RootFS.DiffIDs {
		for _, path := range []string{
			filepath.Join(rootdir.Path(root, rootdir.Layers), id.Encoded(), "manifest"),
			rootdir.Path(rootdir.Path(root, rootdir.Entries), id.Encoded()),
			own[id.String()],
		} {
			if m, err := layer.OpenManifest(path); err == nil {
				parts = append(parts, layer.Part{ID: layer.ID(id.Encoded()), Manifest: m})
				break
			}
		}
	}
	return layer.NewStack(parts), func() {
		for _, p := range parts {
			_ = p.Manifest.Close() // it was only read
		}
	}
}

// ownLayers returns the manifests of the layers that kiln has built, by the diff IDs of config that their notes have.
func ownLayers(root string, config ocispec.Image) map[string]string {
	found := map[string]string{}
	layers := rootdir.Path(root, rootdir.Layers)
	dir, err := os.Open(layers)
	if err != nil {
		return found
	}
	defer dir.Close()
	var entries []fs.DirEntry
	if entries, err = dir.ReadDir(maxLayers); err != nil {
		return found
	}
	for _, e := range entries {
		if len(found) == len(config.RootFS.DiffIDs) {
			break
		}
		for _, note := range blob.Notes(filepath.Join(layers, e.Name())) {
			if b, err := blob.ReadNote(note); err == nil && slices.Contains(config.RootFS.DiffIDs, b.DiffID) {
				found[b.DiffID.String()] = filepath.Join(layers, e.Name(), "manifest")
			}
		}
	}
	return found
}
