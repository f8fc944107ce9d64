package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/store"
	"github.com/kilnbuild/kiln/store/images"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// output is an Output whose attributes have been read.
type output struct {
	Output
	form  exporter.Form
	names []string
	dir   bool                // OutputOCI: a directory instead of a tar
	files exporter.DirOptions // of OutputLocal
	// byDigest is of OutputRegistry: the image gets no tag there.
	byDigest bool
}

// outputs reads and checks what is to be done with the result, before anything is built.
func (b *Builder) outputs(o Options, names []string) ([]output, error) {
	all := o.Outputs
	if len(all) == 0 {
		all = []Output{{Type: OutputImage}}
	}
	var out []output
	for _, spec := range all {
		plan := output{Output: spec, names: names}
		for _, key := range slices.Sorted(maps.Keys(spec.Attrs)) {
			if err := plan.attribute(key, spec.Attrs[key]); err != nil {
				return nil, err
			}
		}
		kind, level := spec.Attrs["compression"], spec.Attrs["compression-level"]
		if kind == "" && level == "" && plan.Type == OutputImage {
			kind = exporter.Uncompressed.Type
		}
		var err error
		if plan.form.Layers.Compression, err = exporter.ParseCompression(kind, level); err != nil {
			return nil, err
		}
		if plan.image() {
			plan.form.Annotations = append(plan.form.Annotations, o.Annotations...)
		}
		if err := plan.checkAnnotations(o.Platforms); err != nil {
			return nil, err
		}
		switch {
		case plan.Type == OutputRegistry && len(plan.names) == 0:
			return nil, errors.New("pushing needs a name: give one with -t")
		case plan.byDigest && plan.Type != OutputRegistry:
			return nil, fmt.Errorf("output %s: push-by-digest needs push=true", plan.Type)
		case plan.Type == OutputDocker && len(o.Platforms) > 1:
			return nil, errors.New("a tar for docker load holds one platform: give one --platform, or use type=oci")
		}
		out = append(out, plan)
	}
	if !slices.ContainsFunc(out, output.image) {
		switch {
		case o.IIDFile != "":
			return nil, errors.New("--iidfile needs an output that is an image")
		case len(o.Annotations) > 0:
			return nil, errors.New("--annotation needs an output that is an image")
		}
	}
	return out, nil
}

func (p *output) attribute(key, value string) error {
	truth := func(into *bool) error {
		switch value {
		case "", "true", "1":
			*into = true
		case "false", "0":
			*into = false
		default:
			return fmt.Errorf("output %s: %s=%s is neither true nor false", p.Type, key, value)
		}
		return nil
	}
	switch key {
	case "compression", "compression-level":
		return nil
	case "name":
		names, err := fullNames(strings.Split(value, ","))
		p.names = names
		return err
	case "rewrite-timestamp":
		if p.image() {
			return truth(&p.form.Layers.Rewrite)
		}
	case "oci-mediatypes":
		oci := true
		err := truth(&oci)
		p.form.Docker = !oci
		return err
	case "tar":
		tar := true
		err := truth(&tar)
		p.dir = !tar
		return err
	case "set-id":
		if p.Type == OutputLocal {
			return truth(&p.files.SetID)
		}
	case "devices":
		if p.Type == OutputLocal {
			return truth(&p.files.Devices)
		}
	case "push":
		return nil // the type says so already
	case "push-by-digest":
		return truth(&p.byDigest)
	case "name-canonical":
		if p.Type == OutputRegistry {
			return nil // it is about names in the store, where what is pushed has none
		}
	case "unpack", "store":
		return nil // every image of the store is there in full, and unpacked when it is needed
	}
	if rest, ok := strings.CutPrefix(key, "annotation"); ok && p.image() {
		return p.annotation(rest, value)
	}
	return fmt.Errorf("output %s: the key %s is not supported yet", p.Type, key)
}

// rewriteTimes tells the outputs that are to have no times of files after SOURCE_DATE_EPOCH what that is, in Unix seconds; nil is for none.
func rewriteTimes(outputs []output, epoch *int64, warn func(string)) {
	for i := range outputs {
		form := &outputs[i].form.Layers
		switch {
		case form.Rewrite && epoch == nil:
			form.Rewrite = false
			warn("rewrite-timestamp does nothing without SOURCE_DATE_EPOCH: give one with --build-arg")
		case form.Rewrite:
			form.Epoch = *epoch
		}
	}
}

// image reports whether the output is an image, and not its files.
func (p output) image() bool {
	return p.Type == OutputImage || p.Type == OutputRegistry || p.Type == OutputDocker || p.Type == OutputOCI
}

// finished is a build whose steps are done.
type finished struct {
	builder *Builder
	work    *store.Work
	blobs   *exporter.Blobs
	bases   *bases
	steps   *steps
	lowered *frontend.Result
	chains  []solver.Ref
	names   []string
	events  *events.Stream
}

// export does what the outputs ask for, one after the other, and writes the files about the result.
func (f *finished) export(ctx context.Context, o Options, outputs []output, res *Result) error {
	images := make([]exporter.Image, len(f.chains))
	for i := range f.chains {
		var err error
		if images[i], err = f.image(ctx, i); err != nil {
			return err
		}
	}
	for _, out := range outputs {
		if err := f.output(ctx, out, images, res); err != nil {
			return err
		}
	}
	if o.IIDFile != "" {
		err := exporter.WriteFile(o.IIDFile, func(w io.Writer) error {
			_, err := io.WriteString(w, res.ImageID)
			return err
		})
		if err != nil {
			return fmt.Errorf("write the image id: %w", err)
		}
	}
	if o.MetadataFile != "" {
		err := exporter.WriteFile(o.MetadataFile, func(w io.Writer) error {
			data, err := res.metadata()
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

func (f *finished) output(ctx context.Context, out output, images []exporter.Image, res *Result) error {
	name := map[OutputType]string{
		OutputImage: "exporting to image", OutputRegistry: "exporting to image and pushing", OutputDocker: "exporting to docker image format", OutputOCI: "exporting to oci image format",
		OutputLocal: "exporting to client directory", OutputTar: "exporting to client tarball", OutputCacheOnly: "exporting nothing",
	}[out.Type]
	task := f.events.Task(llb.Place{}, name)
	ctx = events.With(ctx, task)
	var err error
	switch out.Type {
	case OutputCacheOnly:
	case OutputLocal, OutputTar:
		err = f.files(ctx, out)
	default:
		err = f.write(ctx, out, images, task, res)
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	task.Done(err)
	return err
}

// write assembles the image in the output's form and puts it where it is wanted.
func (f *finished) write(ctx context.Context, out output, images []exporter.Image, task *events.Task, res *Result) error {
	blobs := f.blobs
	a, err := blobs.Assemble(ctx, images, out.form)
	if err != nil {
		return err
	}
	if out.byDigest {
		if out.names, err = canonical(out.names, a.Desc.Digest); err != nil {
			return err
		}
	}
	res.desc, res.Digest, res.ImageID, res.Names = a.Desc, a.Desc.Digest.String(), a.Desc.Digest.String(), out.names
	if len(a.Manifests) == 1 {
		res.ImageID = a.Manifests[0].Manifest.Config.Digest.String()
	}
	task.Note("writing image " + res.ImageID)
	if out.Type == OutputRegistry {
		return f.push(ctx, out, a, task)
	}
	if err := blobs.Fetch(ctx, a); err != nil {
		return err
	}
	archive := exporter.Archive{Names: out.names, DockerManifest: out.Type == OutputDocker}
	switch {
	case out.Type == OutputImage || out.Type == OutputDocker && out.Dest == "":
		return f.builder.images.Name(a.Desc, out.names, task)
	case out.dir:
		return blobs.WriteOCIDir(ctx, out.Dest, a, archive)
	case out.Dest == "-":
		return blobs.WriteOCI(ctx, os.Stdout, a, archive)
	}
	return exporter.WriteFile(out.Dest, func(w io.Writer) error { return blobs.WriteOCI(ctx, w, a, archive) })
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

func (f *finished) push(ctx context.Context, out output, a *exporter.Assembled, task *events.Task) error {
	mounts := map[digest.Digest]string{}
	source := lazyBlobs{ctx: ctx, store: f.blobs, layers: map[digest.Digest]exporter.Layer{}}
	for _, m := range a.Manifests {
		for i, l := range m.Layers {
			d := m.Manifest.Layers[i].Digest
			source.layers[d] = l
			if l.Image != nil && l.Image.Repository != "" {
				mounts[d] = l.Image.Repository
			}
		}
	}
	for _, name := range out.names {
		task.Note("pushing " + name)
		err := f.builder.client.Push(ctx, source, name, a.Desc, registry.PushOptions{MountFrom: mounts, Progress: images.Uploads(task)})
		if err != nil {
			return err
		}
	}
	return nil
}

// lazyBlobs fetches the blobs of base images only when a registry lacks them.
type lazyBlobs struct {
	ctx    context.Context
	store  *exporter.Blobs
	layers map[digest.Digest]exporter.Layer
}

// Open implements registry.Blobs.
func (l lazyBlobs) Open(desc ocispec.Descriptor) (io.ReadCloser, error) {
	if layer, ok := l.layers[desc.Digest]; ok && layer.Image != nil {
		if err := layer.Image.Fetch(l.ctx); err != nil {
			return nil, err
		}
	}
	return l.store.Store.Open(desc)
}

// files writes the root file systems' files.
func (f *finished) files(ctx context.Context, out output) error {
	if len(f.chains) > 1 {
		return f.platforms(ctx, out)
	}
	tree, err := f.tree(ctx, f.chains[0])
	switch {
	case err != nil:
		return err
	case out.Type == OutputLocal:
		dropped, err := exporter.WriteDir(ctx, out.Dest, tree, out.files)
		return f.dropped(out.Dest, dropped, err)
	case out.Dest == "-":
		return exporter.WriteTar(ctx, os.Stdout, tree)
	}
	return exporter.WriteFile(out.Dest, func(w io.Writer) error { return exporter.WriteTar(ctx, w, tree) })
}

// platforms writes the files of each platform into a directory of its own in the user's, which is looked up once.
func (f *finished) platforms(ctx context.Context, out output) error {
	if out.Type == OutputTar {
		return errors.New("a tar holds one platform's files: give one --platform, or use type=local")
	}
	var dest *os.File
	for i, chain := range f.chains {
		tree, err := f.tree(ctx, chain)
		if err != nil {
			return err
		}
		if dest == nil {
			if dest, err = exporter.OpenDir(out.Dest); err != nil {
				return err
			}
			defer dest.Close()
		}
		name := strings.ReplaceAll(f.lowered.Images[i].Platform.String(), "/", "_")
		shown := out.Dest + "/" + name
		dropped, err := exporter.WriteDirAt(ctx, dest, name, shown, tree, out.files)
		if err := f.dropped(shown, dropped, err); err != nil {
			return err
		}
	}
	return nil
}

// tree makes a root file system's layers, where they are missing, and returns its files.
func (f *finished) tree(ctx context.Context, chain solver.Ref) (layer.Tree, error) {
	ids, err := f.steps.Realise(ctx, chain)
	if err != nil {
		return nil, err
	}
	return f.work.Layers.Stack(ids)
}

// dropped warns of what the user's directory did not get when files were written into it.
func (f *finished) dropped(dest string, dropped exporter.Dropped, err error) error {
	if err != nil {
		return err
	}
	if n := dropped.SetID; n > 0 {
		f.events.Warn(fmt.Sprintf("%s: %s without the set-user-ID and set-group-ID bits that the image has; type=local,dest=…,set-id=true keeps them", rootdir.Shown(dest), wrote(n, "file")))
	}
	if n := dropped.Devices; n > 0 {
		f.events.Warn(fmt.Sprintf("%s: %s left out; type=local,dest=…,devices=true makes them", rootdir.Shown(dest), wrote(n, "device")))
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

// image describes the result for one platform to the exporter.
func (f *finished) image(ctx context.Context, i int) (exporter.Image, error) {
	lowered, chain := f.lowered.Images[i], f.chains[i]
	img := exporter.Image{Config: dockerspec.DockerOCIImage{Config: lowered.Config}, Platform: lowered.Platform.String()}
	img.Config.Architecture, img.Config.OS, img.Config.Variant = lowered.Platform.Architecture, lowered.Platform.OS, lowered.Platform.Variant
	img.Config.OSVersion, img.Config.Author = lowered.Platform.OSVersion, lowered.Author

	bottom, below, err := f.bottom(ctx, lowered.Root)
	if err != nil {
		return img, err
	}
	for n, l := range chain.Layers() {
		if n < len(below) {
			img.Layers = append(img.Layers, f.baseLayer(bottom, below[n]))
		} else {
			img.Layers = append(img.Layers, exporter.Layer{ID: l.ID})
		}
	}
	times, err := f.times(img.Layers)
	if err != nil {
		return img, err
	}
	n := len(below)
	var last *time.Time
	for _, h := range lowered.History {
		entry := ocispec.History{CreatedBy: h.CreatedBy, Comment: h.Comment, Author: h.Author, EmptyLayer: h.Empty, Created: h.Created}
		if h.Vertex != nil {
			entry.Created = times[n]
			n++
		}
		if entry.Created == nil {
			entry.Created = last
		}
		last = entry.Created
		img.Config.History = append(img.Config.History, entry)
	}
	// An entry before the first layer was made no later than that.
	for i := len(img.Config.History) - 2; i >= 0; i-- {
		if h := img.Config.History; h[i].Created == nil && h[i].Comment != "" {
			h[i].Created = h[i+1].Created
		}
	}
	img.Config.Created = last
	if f.lowered.Epoch != nil {
		epoch := time.Unix(*f.lowered.Epoch, 0).UTC()
		img.Config.Created = &epoch
		for i := len(lowered.History) - 1; i >= 0 && lowered.History[i].Created == nil; i-- {
			img.Config.History[i].Created = &epoch
		}
	}
	if n != len(img.Layers) {
		return img, fmt.Errorf("BUG: the history names %d layers, and there are %d", n, len(img.Layers))
	}
	return img, nil
}

// times returns when each layer was made; nil for those of images, whose history says so itself.
func (f *finished) times(layers []exporter.Layer) ([]*time.Time, error) {
	out := make([]*time.Time, len(layers))
	for i, l := range layers {
		if l.Image != nil {
			continue
		}
		m, err := f.work.Layers.Manifest(l.ID)
		if err != nil {
			return nil, err
		}
		t := m.Created.UTC()
		out[i] = &t
	}
	return out, nil
}

// bottom returns the image that a root is built on, and its layers.
func (f *finished) bottom(ctx context.Context, o llb.Output) (llb.Image, []execute.ImageLayer, error) {
	for base, ok := o.Base(); ok; base, ok = o.Base() {
		o = base
	}
	img, ok := o.Vertex.Op().(llb.Image)
	if !ok {
		return img, nil, nil
	}
	layers, err := f.bases.Layers(ctx, img)
	return img, layers, err
}

func (f *finished) baseLayer(img llb.Image, l execute.ImageLayer) exporter.Layer {
	return exporter.Layer{ID: l.DiffID.Encoded(), Image: &exporter.ImageLayer{
		Blob: l.Blob, DiffID: l.DiffID, Repository: f.bases.repository(img),
		Fetch: func(ctx context.Context) error { return f.bases.download(ctx, img, l.Blob) },
	}}
}

// metadata returns what --metadata-file holds, in BuildKit's words.
func (r *Result) metadata() ([]byte, error) {
	m := map[string]any{}
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
