package build

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/build/outputs"
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

// write does what the outputs ask for, one after the other, and writes the files about the result.
func (j *Job) write(ctx context.Context, res *Result) error {
	for i, out := range j.plans {
		if err := j.output(ctx, out, res); err != nil {
			return err
		}
		if out.IsImage() {
			res.made[i] = res.desc
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

func (j *Job) output(ctx context.Context, out outputs.Plan, res *Result) error {
	if out.Type == outputs.CacheOnly {
		return nil
	}
	name := map[outputs.Type]string{
		outputs.Image:    "exporting to image",
		outputs.Registry: "exporting to image",
		outputs.Docker:   "exporting to docker image format",
		outputs.OCI:      "exporting to oci image format",
		outputs.Local:    "exporting to client directory",
		outputs.Tar:      "exporting to client tarball",
	}[out.Type]
	if out.Engine != nil {
		name = "importing to " + out.Engine.Name()
	}
	task := j.events.Task(llb.Place{}, name)
	ctx = events.With(ctx, task)
	var err error
	switch out.Type {
	case outputs.Local, outputs.Tar:
		err = j.files(ctx, out, res)
	default:
		err = j.writeImage(ctx, out, task, res)
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	task.Done(err)
	return err
}

// writeImage assembles the image in the output's form and puts it where it is wanted.
func (j *Job) writeImage(ctx context.Context, out outputs.Plan, task *events.Task, res *Result) error {
	blobs, epoch := j.blobs, out.EpochOf(j.product.Epoch)
	built := make([]exporter.Image, len(j.chains))
	for i := range built {
		var err error
		if built[i], err = j.image(ctx, i, out.Config, epoch); err != nil {
			return err
		}
	}
	manifests, err := blobs.Manifests(ctx, built, out.Form)
	if err != nil {
		return err
	}
	attested, err := j.attester.Manifests(ctx, blobs, manifests, out.Names, &out.Attest, !out.NoArtifact)
	if err != nil {
		return err
	}
	a, err := blobs.Join(manifests, attested, out.Form)
	if err != nil {
		return err
	}
	if out.Archived() && epoch != nil {
		a.Created(time.Unix(*epoch, 0))
	}
	if out.ByDigest {
		if out.Names, err = outputs.Canonical(out.Names, a.Desc.Digest); err != nil {
			return err
		}
	}
	res.desc, res.Digest, res.ImageID, res.Names = a.Desc, a.Desc.Digest.String(), a.Desc.Digest.String(), out.Names
	if !cas.IsIndex(a.Desc.MediaType) {
		res.ImageID = a.Manifests[0].Manifest.Config.Digest.String()
	}
	res.layers = layerSizes(a)
	task.Note("writing image " + res.ImageID)
	if out.Type == outputs.Registry {
		// A push fetches nothing that the registry has, so an image whose base is not here has no name here either.
		if err := j.push(ctx, out, a, task); err != nil || out.Unnamed || out.ByDigest || !blobs.Here(a) {
			return err
		}
	}
	if err := blobs.Fetch(ctx, a); err != nil {
		return err
	}
	if out.Engine != nil {
		if err := out.Engine.Load(ctx, blobs, a, out.Names, images.Uploads(task)); err != nil {
			return err
		}
	}
	archive := exporter.Archive{Names: out.Names, DockerManifest: out.Type == outputs.Docker}
	switch {
	case out.Type == outputs.Image || out.Type == outputs.Registry || out.ToEngine():
		return j.builder.images.Job(j.store).Name(a.Desc, out.Names, task)
	case out.Dir && out.To != nil:
		return blobs.Send(ctx, out.To, a)
	case out.Dir:
		return blobs.WriteOCIDir(ctx, out.Dest, a, archive)
	}
	return toFile(ctx, &out, res.Response(), func(w io.Writer) error { return blobs.WriteOCI(ctx, w, a, archive) })
}

// toFile writes a file where an output wants it. about is what a receiver is told.
func toFile(ctx context.Context, out *outputs.Plan, about map[string]string, write func(io.Writer) error) error {
	switch {
	case out.To != nil:
		return out.To.WriteFile(ctx, about, write)
	case out.Dest == outputs.Stdout:
		return write(os.Stdout)
	}
	return exporter.WriteFile(out.Dest, write)
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

func (j *Job) push(ctx context.Context, out outputs.Plan, a *exporter.Assembled, task *events.Task) error {
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
	client := j.builder.client
	if out.Insecure {
		for _, name := range out.Names {
			if ref, err := imagename.Parse(name); err == nil {
				client = client.Insecure(ref.Registry)
			}
		}
	}
	o := registry.PushOptions{MountFrom: mounts, Progress: images.Uploads(task)}
	return attached.Push(ctx, client, source, out.Names, a.Desc, j.options.Export.Sign, o, task.Note)
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
func (j *Job) files(ctx context.Context, out outputs.Plan, res *Result) error {
	split := j.product.Given.ByPlatform || len(j.chains) > 1
	if out.Split != nil {
		split = *out.Split
	}
	roots := make([]exporter.Root, len(j.chains))
	for i := range j.chains {
		name := func(file string) string { return out.AttestPrefix + file }
		if len(j.chains) > 1 && !split {
			name = func(file string) string {
				ext := path.Ext(file)
				return out.AttestPrefix + strings.TrimSuffix(file, ext) + "." + j.platformDir(i) + ext
			}
		}
		tree, err := j.attestedFiles(ctx, i, out, name)
		if err != nil {
			return err
		}
		roots[i].Tree = tree
		if split {
			roots[i].Dir = j.platformDir(i)
		}
	}
	if !split {
		roots = []exporter.Root{{Tree: exporter.Joined(roots)}}
	}
	switch {
	case out.Type == outputs.Local && out.To != nil:
		return out.To.WriteFiles(ctx, out.Files.Epoch, roots...)
	case out.Type == outputs.Local && split:
		return j.platforms(ctx, out, roots)
	case out.Type == outputs.Local:
		dropped, err := exporter.WriteDir(ctx, out.Dest, roots[0].Tree, out.Files)
		return j.dropped(out.Dest, dropped, err)
	}
	return toFile(ctx, &out, res.Response(), func(w io.Writer) error { return exporter.WriteTar(ctx, w, out.Files.Epoch, roots...) })
}

// platformDir is the name of the directory that has the files of one of several platforms: "linux_arm64".
func (j *Job) platformDir(i int) string {
	return j.product.Given.Directory(i, j.product.Images[i].Platform.String())
}

// platforms writes the files of each platform into a directory of its own in the user's, which is looked up once.
func (j *Job) platforms(ctx context.Context, out outputs.Plan, roots []exporter.Root) error {
	dest, err := exporter.OpenDir(out.Dest)
	if err != nil {
		return err
	}
	defer dest.Close()
	for _, r := range roots {
		shown := out.Dest + "/" + r.Dir
		dropped, err := exporter.WriteDirAt(ctx, dest, r.Dir, shown, r.Tree, out.Files)
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

// Made returns the ID of the build in the history, and the descriptors of the manifests or indexes of images, by the numbers of outputs.
func (r *Result) Made() (id string, images map[int]ocispec.Descriptor) { return r.id, r.made }

// Response returns what clients of BuildKit are told of the result.
func (r *Result) Response() map[string]string {
	all := map[string]string{}
	if r.Digest != "" {
		all["containerimage.digest"] = r.Digest
		if desc, err := json.Marshal(r.desc); err == nil {
			all["containerimage.descriptor"] = base64.StdEncoding.EncodeToString(desc)
		}
		if r.ImageID != r.Digest {
			all["containerimage.config.digest"] = r.ImageID
		}
	}
	if len(r.Names) > 0 {
		all["image.name"] = strings.Join(r.Names, ",")
	}
	return all
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
