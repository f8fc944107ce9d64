package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/userns"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxComplaint bounds how much of what a program prints is kept, in bytes.
const maxComplaint = 4 << 10

// pipeWait is how long the pipes of a program are read that has ended and whose children have not.
const pipeWait = time.Second

// Storage is the storage of images that podman, buildah and CRI-O share on this machine: see containers-storage(5). Programs of theirs
// work on it, since only their own library knows its format.
type Storage struct {
	skopeo, podman string // paths; at least one is there
	scratch        string
}

// FindStorage looks for skopeo and podman, one of which is enough. Files for them are made in scratch, a directory of this process.
func FindStorage(scratch string) (*Storage, error) {
	s := &Storage{scratch: scratch}
	var err error
	if s.skopeo, err = exec.LookPath("skopeo"); err != nil {
		s.podman, err = exec.LookPath("podman")
	}
	if err != nil {
		return nil, errors.New("neither skopeo nor podman is installed, and one of them has to put the image into containers-storage")
	}
	return s, nil
}

// Name is what the storage is called.
func (s *Storage) Name() string { return "containers-storage" }

// KeepsBlobs reports that layers are unpacked.
func (s *Storage) KeepsBlobs() bool { return false }

// TakesIndexes reports that a name is for one platform.
func (s *Storage) TakesIndexes() bool { return false }

// Load puts an image, all of whose blobs are in the store, into the storage under names. The program reads the blobs where they are, and
// only those that the storage lacks.
func (s *Storage) Load(ctx context.Context, blobs *exporter.Blobs, a *exporter.Assembled, names []string, p Progress) error {
	dir, err := os.MkdirTemp(s.scratch, "containers-storage-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := layoutOf(dir, filepath.Join(blobs.Store.Root(), rootdir.Blobs), a.Desc); err != nil {
		return err
	}
	layers := map[digest.Digest]ocispec.Descriptor{}
	for _, layer := range a.Manifests[0].Manifest.Layers {
		layers[layer.Digest] = layer
	}
	for _, layer := range layers {
		p.Queued(layer)
	}
	if err := s.copy(ctx, "oci:"+dir+":"+layoutName, dir, a.Manifests[0].Manifest.Config.Digest.Encoded(), names); err != nil {
		return err
	}
	for _, layer := range layers {
		p.Sent(layer, layer.Size)
	}
	return nil
}

// copy has a program copy the image with an ID from a source, a layout in dir, and give it its names.
func (s *Storage) copy(ctx context.Context, source, dir, id string, names []string) error {
	if s.skopeo != "" {
		for _, name := range names {
			if err := run(ctx, s.skopeo, "copy", "--quiet", source, "containers-storage:"+name); err != nil {
				return err
			}
		}
		return nil
	}
	if err := run(ctx, s.podman, "pull", "--quiet", source); err != nil {
		return err
	}
	if err := run(ctx, s.podman, append([]string{"tag", id}, names...)...); err != nil {
		return err
	}
	return run(ctx, s.podman, "untag", id, "localhost/"+dir) // podman gives a name to what it pulls
}

// layoutName is the name of the image in the layout that a program reads.
const layoutName = "image"

// layoutOf makes dir an OCI layout that has one image, with the blobs of another directory.
func layoutOf(dir, blobs string, desc ocispec.Descriptor) error {
	to, err := filepath.Rel(dir, blobs)
	if err != nil {
		return err
	}
	if err := os.Symlink(to, filepath.Join(dir, rootdir.Blobs)); err != nil {
		return err
	}
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: layoutName}
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc},
	}
	for name, v := range map[string]any{
		ocispec.ImageIndexFile: index, ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
	} {
		data, err := json.Marshal(v)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// run runs a program of containers-storage. A kiln of an ordinary user is in a user namespace with the same ids
// that such programs make for that user, and says so in the way in which they tell each other (containers/storage, pkg/unshare).
func run(ctx context.Context, path string, args ...string) error {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = pipeWait
	cmd.Env = os.Environ()
	if userns.Inside() {
		cmd.Env = append(cmd.Env, "_CONTAINERS_USERNS_CONFIGURED=done",
			"_CONTAINERS_ROOTLESS_UID="+strconv.Itoa(userns.UID()), "_CONTAINERS_ROOTLESS_GID="+strconv.Itoa(userns.GID()))
	}
	var complaint tail
	cmd.Stderr = &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(path), args[0], err, fetch.Quote(complaint.lastLine()))
	}
	return nil
}

// tail keeps the last maxComplaint bytes of what is written to it.
type tail struct{ bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	t.Buffer.Write(p)
	if over := t.Len() - maxComplaint; over > 0 {
		t.Next(over)
	}
	return len(p), nil
}

func (t *tail) lastLine() string {
	s := strings.TrimSpace(t.String())
	return s[strings.LastIndexByte(s, '\n')+1:]
}
