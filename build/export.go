package build

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/signature/attached"
	"github.com/kilnbuild/kiln/store/images"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// export does what the outputs ask for, one after the other, and writes the files about the result.
func (j *Job) export(ctx context.Context, res *Result) error {
	images := make([]exporter.Image, len(j.chains))
	for i := range j.chains {
		var err error
		if images[i], err = j.image(ctx, i); err != nil {
			return err
		}
	}
	for _, out := range j.plans {
		if err := j.output(ctx, out, images, res); err != nil {
			return err
		}
	}
	if j.options.Export.IIDFile != "" {
		err := exporter.WriteFile(j.options.Export.IIDFile, func(w io.Writer) error {
			_, err := io.WriteString(w, res.ImageID)
			return err
		})
		if err != nil {
			return fmt.Errorf("write the image id: %w", err)
		}
	}
	if x := &j.options.Export; x.MetadataProvenance != "" && !x.Attest.NoProvenance {
		var err error
		if res.provenance, err = j.attester.Metadata(x.MetadataProvenance == MetadataMax); err != nil {
			return err
		}
	}
	if j.options.Export.MetadataFile != "" {
		err := exporter.WriteFile(j.options.Export.MetadataFile, func(w io.Writer) error {
			data, err := res.Metadata()
			if err == nil {
				_, err = w.Write(data)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("write the metadata: %w", err)
		}
	}
	return nil
}

func (j *Job) output(ctx context.Context, out output, images []exporter.Image, res *Result) error {
	name := map[OutputType]string{
		OutputImage:     "exporting to image",
		OutputRegistry:  "exporting to image and pushing",
		OutputDocker:    "exporting to docker image format",
		OutputOCI:       "exporting to oci image format",
		OutputLocal:     "exporting to client directory",
		OutputTar:       "exporting to client tarball",
		OutputCacheOnly: "exporting nothing",
	}[out.Type]
	if out.target != nil {
		name = "importing to " + out.target.Name()
	}
	task := j.events.Task(llb.Place{}, name)
	ctx = events.With(ctx, task)
	var err error
	switch out.Type {
	case OutputCacheOnly:
	case OutputLocal, OutputTar:
		err = j.files(ctx, out)
	default:
		err = j.write(ctx, out, images, task, res)
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	task.Done(err)
	return err
}

// write assembles the image in the output's form and puts it where it is wanted.
func (j *Job) write(ctx context.Context, out output, built []exporter.Image, task *events.Task, res *Result) error {
	blobs := j.blobs
	manifests, err := blobs.Manifests(ctx, built, out.form)
	if err != nil {
		return err
	}
	attested, err := j.attester.Manifests(ctx, blobs, manifests, out.names, &out.attest, !out.noArtifact)
	if err != nil {
		return err
	}
	a, err := blobs.Join(manifests, attested, out.form)
	if err != nil {
		return err
	}
	if out.byDigest {
		if out.names, err = canonical(out.names, a.Desc.Digest); err != nil {
			return err
		}
	}
	res.desc, res.Digest, res.ImageID, res.Names = a.Desc, a.Desc.Digest.String(), a.Desc.Digest.String(), out.names
	if !cas.IsIndex(a.Desc.MediaType) {
		res.ImageID = a.Manifests[0].Manifest.Config.Digest.String()
	}
	res.layers = layerSizes(a)
	task.Note("writing image " + res.ImageID)
	if out.Type == OutputRegistry {
		// A push fetches nothing that the registry has, so an image whose base is not here has no name here either.
		if err := j.push(ctx, out, a, task); err != nil || out.unnamed || out.byDigest || !blobs.Here(a) {
			return err
		}
	}
	if err := blobs.Fetch(ctx, a); err != nil {
		return err
	}
	if out.target != nil {
		if err := out.target.Load(ctx, blobs, a, out.names, images.Uploads(task)); err != nil {
			return err
		}
	}
	archive := exporter.Archive{Names: out.names, DockerManifest: out.Type == OutputDocker}
	switch {
	case out.Type == OutputImage || out.Type == OutputRegistry || out.toEngine():
		return j.builder.images.Job(j.store).Name(a.Desc, out.names, task)
	case out.dir:
		return blobs.WriteOCIDir(ctx, out.Dest, a, archive)
	case out.Dest == stdout:
		return blobs.WriteOCI(ctx, os.Stdout, a, archive)
	}
	return exporter.WriteFile(out.Dest, func(w io.Writer) error { return blobs.WriteOCI(ctx, w, a, archive) })
}

// layerSizes returns the layers of images that steps made, each once.
func layerSizes(a *exporter.Assembled) []events.LayerSize {
	var sizes []events.LayerSize
	seen := map[layer.ID]bool{}
	for _, m := range a.Manifests {
		for i, l := range m.Layers {
			if l.Image == nil && !seen[l.ID] {
				seen[l.ID] = true
				sizes = append(sizes, events.LayerSize{Layer: string(l.ID), Size: m.Manifest.Layers[i].Size})
			}
		}
	}
	return sizes
}

// canonical returns names with the digest in place of the tag, each once.
func canonical(names []string, d digest.Digest) ([]string, error) {
	var out []string
	for _, name := range names {
		ref, err := imagename.Parse(name)
		if err != nil {
			return nil, err
		}
		ref.Tag, ref.Digest = "", d
		if name = ref.String(); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out, nil
}

func (j *Job) push(ctx context.Context, out output, a *exporter.Assembled, task *events.Task) error {
	mounts := map[digest.Digest]string{}
	source := lazyBlobs{ctx: ctx, store: j.blobs, layers: map[digest.Digest]exporter.Layer{}}
	for _, m := range a.Manifests {
		for i, l := range m.Layers {
			d := m.Manifest.Layers[i].Digest
			source.layers[d] = l
			if repository := j.blobs.Repository(l); repository != "" {
				mounts[d] = repository
			}
		}
	}
	o := registry.PushOptions{MountFrom: mounts, Progress: images.Uploads(task)}
	return attached.Push(ctx, j.builder.client, source, out.names, a.Desc, j.options.Export.Sign, o, task.Note)
}

// lazyBlobs fetches the blobs of base images, and of caches, only when a registry lacks them.
type lazyBlobs struct {
	ctx    context.Context
	store  *exporter.Blobs
	layers map[digest.Digest]exporter.Layer
}

// Open implements registry.Blobs.
func (l lazyBlobs) Open(desc ocispec.Descriptor) (io.ReadCloser, error) {
	if layer, ok := l.layers[desc.Digest]; ok {
		if err := l.store.Bring(l.ctx, layer, desc); err != nil {
			return nil, err
		}
	}
	return l.store.Store.Open(desc)
}

// files writes the root file systems' files.
func (j *Job) files(ctx context.Context, out output) error {
	if out.Type == OutputTar {
		return j.tar(ctx, out)
	}
	if len(j.chains) > 1 {
		return j.platforms(ctx, out)
	}
	tree, err := j.attestedFiles(ctx, 0, out)
	if err != nil {
		return err
	}
	dropped, err := exporter.WriteDir(ctx, out.Dest, tree, out.files)
	return j.dropped(out.Dest, dropped, err)
}

// tar writes the files as a tar. Of several platforms each has a directory.
func (j *Job) tar(ctx context.Context, out output) error {
	roots := make([]exporter.Root, len(j.chains))
	for i := range j.chains {
		tree, err := j.attestedFiles(ctx, i, out)
		if err != nil {
			return err
		}
		roots[i].Tree = tree
		if len(roots) > 1 {
			roots[i].Dir = j.platformDir(i)
		}
	}
	write := func(w io.Writer) error { return exporter.WriteTar(ctx, w, out.files.Epoch, roots...) }
	if out.Dest == stdout {
		return write(os.Stdout)
	}
	return exporter.WriteFile(out.Dest, write)
}

// platformDir is the name of the directory that has the files of one of several platforms: "linux_arm64".
func (j *Job) platformDir(i int) string {
	return strings.ReplaceAll(j.lowered.Images[i].Platform.String(), "/", "_")
}

// platforms writes the files of each platform into a directory of its own in the user's, which is looked up once.
func (j *Job) platforms(ctx context.Context, out output) error {
	dest, err := exporter.OpenDir(out.Dest)
	if err != nil {
		return err
	}
	defer dest.Close()
	for i := range j.chains {
		tree, err := j.attestedFiles(ctx, i, out)
		if err != nil {
			return err
		}
		shown := out.Dest + "/" + j.platformDir(i)
		dropped, err := exporter.WriteDirAt(ctx, dest, j.platformDir(i), shown, tree, out.files)
		if err := j.dropped(shown, dropped, err); err != nil {
			return err
		}
	}
	return nil
}

// dropped warns of what the user's directory did not get when files were written into it.
func (j *Job) dropped(dest string, dropped exporter.Dropped, err error) error {
	if err != nil {
		return err
	}
	if n := dropped.SetID; n > 0 {
		j.events.Warn(fmt.Sprintf("%s: %s without the set-user-ID and set-group-ID bits that the image has; "+
			"type=local,dest=…,set-id=true keeps them", rootdir.Shown(dest), wrote(n, "file")))
	}
	if n := dropped.Devices; n > 0 {
		j.events.Warn(fmt.Sprintf("%s: %s left out; type=local,dest=…,devices=true makes them", rootdir.Shown(dest), wrote(n, "device")))
	}
	return nil
}

// wrote returns "1 file is", "2 files are".
func wrote(n int, thing string) string {
	if n == 1 {
		return "1 " + thing + " is"
	}
	return fmt.Sprintf("%d %ss are", n, thing)
}

// Metadata returns what --metadata-file holds, in BuildKit's words.
func (r *Result) Metadata() ([]byte, error) {
	m := maps.Clone(r.provenance)
	if m == nil {
		m = map[string]any{}
	}
	if r.id != "" {
		m["buildx.build.ref"] = "default/default/" + r.id // builder, node and build
	}
	if r.Digest != "" {
		m["containerimage.digest"] = r.Digest
		m["containerimage.descriptor"] = r.desc
		if r.ImageID != r.Digest {
			m["containerimage.config.digest"] = r.ImageID // an index has none
		}
	}
	if len(r.Names) > 0 {
		m["image.name"] = strings.Join(r.Names, ",")
	}
	return json.MarshalIndent(m, "", "  ")
}
