// Package outputs reads what is to be done with the result of a build, and checks it before anything is built. It makes nothing itself.
package outputs

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/build/reproduce"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/signing"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/blob"
)

// CheckTag returns an error unless s can be a new image's name: "app", "registry:5000/app:v1", without digest.
func CheckTag(s string) error {
	r, err := imagename.Parse(s)
	if err != nil {
		return err
	}
	if r.Digest != "" {
		return fmt.Errorf("%q has a digest, which is not for the user to choose", s)
	}
	return nil
}

// Stdout stands for standard output as the Dest of an Output.
const Stdout = "-"

// Export is what becomes of the result.
type Export struct {
	// Tags are names for the image, each a valid reference without digest, as written: "app", "registry:5000/app:v1".
	Tags []string
	// Annotations are for every output that is an image, after those of its own.
	Annotations []exporter.Annotation
	// Outputs are empty to put the image in the image store alone.
	Outputs []Output
	// IIDFile is a file that the image's ID is written to; "" for none.
	IIDFile string
	// Sign are the keys that what is pushed is signed with.
	Sign []*signing.PrivateKey
	// Attest are attestations of the result.
	Attest attestation.Options
	// MetadataFile is a file for the digests and names of the result, as JSON; "" for none.
	MetadataFile string
	// MetadataProvenance says how much the metadata of the result has of the provenance; "" for none.
	MetadataProvenance MetadataMode
}

// MetadataMode is how much of the provenance there is in the metadata of a build.
type MetadataMode string

// The modes of the metadata's provenance.
const (
	MetadataMin MetadataMode = "min"
	MetadataMax MetadataMode = "max"
)

// Type is a kind of Output.
type Type string

// The types of --output. "image" with push=true is Registry: they ask for the same.
const (
	// Image puts the image into the store.
	Image Type = "image"
	// Registry pushes the image and puts it into the store.
	Registry Type = "registry"
	// Docker writes a tar that docker load reads; with no Dest it puts the image into docker's or podman's engine, and into the store.
	Docker Type = "docker"
	// Storage puts the image into the storage of podman, and into the store.
	Storage Type = "containers-storage"
	// OCI writes an OCI image layout: a tar, or with tar=false a directory.
	OCI Type = "oci"
	// Local writes the root file system's files to a directory.
	Local Type = "local"
	// Tar writes the root file system as a tar.
	Tar Type = "tar"
	// CacheOnly fills the cache and keeps no image.
	CacheOnly Type = "cacheonly"
)

// Output is one thing to do with the result.
type Output struct {
	Type Type
	// Dest is a file or directory; "-" is standard output, "" none. OCI, Local and Tar always have one.
	Dest string
	// To takes what is written in place of Dest, which is "" then; nil for none.
	To exporter.Receiver
	// ResultNames leaves the name of the image to whoever makes the result: see Given.
	ResultNames bool
	// Config is the configuration of the image in place of that of the result; nil for none.
	Config *dockerspec.DockerOCIImage
	// Attrs are the other keys of --output, in lower case, as written: "name", "compression", "tar", …
	Attrs map[string]string
}

// Plan is an Output whose attributes have been read.
type Plan struct {
	Output
	Form exporter.Form
	// Names are those of the image, in full.
	Names []string
	// Dir is of OCI: a directory instead of a tar. Files are of Local.
	Dir   bool
	Files exporter.DirOptions
	// ByDigest is of Registry: the image gets no tag there. Unnamed says that it gets no name in the store.
	ByDigest, Unnamed bool
	// Attest are the attestations that the output gets, and AttestPrefix begins the names of files with them. NoArtifact gives their
	// manifests the form of an image.
	Attest       attestation.Options
	AttestPrefix string
	NoArtifact   bool
	// Split has the files of each platform in a directory of its own: nil for those of several.
	Split *bool
	// Source is the directory of the root file system that is written, of Local and Tar; "" for all.
	Source string
	// Epoch is a SOURCE_DATE_EPOCH of the output alone, in Unix seconds, if Dated is set; nil for none.
	Epoch *int64
	Dated bool
	// Insecure is of Registry: certificates do not count, and plain HTTP will do.
	Insecure bool
	// inline has attestations in the output that are for those in stores and registries alone.
	inline bool
	// Engine is where the image goes that is put into one: see FindEngines.
	Engine Engine
}

// Plan reads what is to be done with the result, which is known under names in full. reproducible says that the digest of an image has to
// be the same on every host. What depends on platforms is checked by CheckPlatforms.
func (x *Export) Plan(names []string, reproducible bool) ([]Plan, error) {
	all := x.Outputs
	if len(all) == 0 {
		all = []Output{{Type: Image}}
	}
	var out []Plan
	for _, spec := range all {
		plan := Plan{Output: spec, Names: names}
		for _, key := range slices.Sorted(maps.Keys(spec.Attrs)) {
			if err := plan.attribute(key, spec.Attrs[key]); err != nil {
				return nil, err
			}
		}
		if err := plan.setAttestations(&x.Attest); err != nil {
			return nil, err
		}
		kind, level := spec.Attrs["compression"], spec.Attrs["compression-level"]
		// What is attested is pushed as it is.
		if kind == "" && level == "" && (plan.Type == Image && !plan.Attest.Any() || plan.ToEngine()) {
			kind = blob.Uncompressed.Type
		}
		var err error
		if plan.Form.Layers.Compression, err = blob.ParseCompression(kind, level); err != nil {
			return nil, err
		}
		if plan.IsImage() {
			plan.Form.Annotations = append(plan.Form.Annotations, x.Annotations...)
		}
		if _, given := spec.Attrs["rewrite-timestamp"]; reproducible && plan.IsImage() {
			if err := reproduce.Date(&plan.Form.Layers, given); err != nil {
				return nil, fmt.Errorf("output %s: %w", spec.Type, err)
			}
		}
		switch {
		case plan.Type == Registry && len(plan.Names) == 0 && !plan.ResultNames:
			return nil, errors.New("pushing needs a name: give one with -t")
		case plan.Type == Storage && len(plan.Names) == 0:
			return nil, errors.New("containers-storage needs a name: give one with -t")
		case plan.ByDigest && plan.Type != Registry:
			return nil, fmt.Errorf("output %s: push-by-digest needs push=true", plan.Type)
		case plan.Dir && plan.Type != OCI && !plan.written():
			return nil, fmt.Errorf("output %s: tar=false needs dest=DIRECTORY", plan.Type)
		}
		out = append(out, plan)
	}
	if x.Attest.Any() && !slices.ContainsFunc(out, func(p Plan) bool { return p.Attest.Any() }) && !x.Attest.InlineOnly() {
		return nil, errors.New("attestations need an output that they are written to")
	}
	if !slices.ContainsFunc(out, Plan.IsImage) {
		switch {
		case x.IIDFile != "":
			return nil, errors.New("--iidfile needs an output that is an image")
		case len(x.Annotations) > 0:
			return nil, errors.New("--annotation needs an output that is an image")
		}
	}
	return out, nil
}

// EpochOf returns the SOURCE_DATE_EPOCH of the output, where product is that of the result.
func (p *Plan) EpochOf(product *int64) *int64 {
	if p.Dated {
		return p.Epoch
	}
	return product
}

// Archived reports whether the output is an image in files: an OCI layout, or a tar for docker load.
func (p *Plan) Archived() bool { return p.Type == OCI || p.Type == Docker && p.written() }

// CheckPlatforms returns an error for what outputs cannot hold of an image for these platforms; none stand for the host's own.
func CheckPlatforms(plans []Plan, platforms []llb.Platform) error {
	for i := range plans {
		p := &plans[i]
		if err := p.checkAnnotations(platforms); err != nil {
			return err
		}
		switch {
		case p.Config != nil && len(platforms) > 1:
			return fmt.Errorf("output %s: one configuration is not for the images of %d platforms", p.Type, len(platforms))
		case p.Type == Docker && p.written() && len(platforms) > 1:
			return errors.New("a tar for docker load holds one platform: give one --platform, or use type=oci")
		case p.Type == Storage && len(platforms) > 1:
			return errors.New("podman's storage holds one platform under a name: give one --platform")
		}
	}
	return nil
}

// written reports whether the output goes to a file or directory.
func (p *Plan) written() bool { return p.Dest != "" || p.To != nil }

// setAttestations decides which of the attestations that the build makes an output gets.
func (p *Plan) setAttestations(o *attestation.Options) error {
	inline := p.takesInline()
	if o.Provenance != nil && (inline || !o.Provenance.InlineOnly) {
		p.Attest.Provenance = o.Provenance
	}
	if o.SBOM != nil && (inline || !o.SBOM.InlineOnly) {
		p.Attest.SBOM = o.SBOM
	}
	return p.checkAttestations()
}

// takesInline reports whether the output gets attestations that are for stores and registries alone.
func (p *Plan) takesInline() bool {
	return p.Type == Image || p.Type == Registry || p.ToEngine() || p.inline
}

// checkAttestations returns an error for attestations that the output cannot hold.
func (p *Plan) checkAttestations() error {
	switch {
	case p.Type == CacheOnly || !p.Attest.Any():
		p.Attest = attestation.Options{}
	case p.Type == Docker && p.written():
		return errors.New("a tar for docker load holds no attestations: use type=oci, which current dockers load, or leave them out " +
			"with inline-only=true")
	case p.Form.Docker:
		return fmt.Errorf("output %s: oci-mediatypes=false, and Docker's media types have no attestations", p.Type)
	}
	return nil
}

func (p *Plan) attribute(key, value string) error {
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
		names, err := FullNames(strings.Split(value, ","))
		p.Names = names
		return err
	case "rewrite-timestamp":
		if p.IsImage() {
			return truth(&p.Form.Layers.Rewrite)
		}
	case "oci-mediatypes":
		oci := true
		err := truth(&oci)
		p.Form.Docker = !oci
		return err
	case "oci-artifact":
		if p.IsImage() {
			artifact := true
			err := truth(&artifact)
			p.NoArtifact = !artifact
			return err
		}
	case "attestation-prefix":
		if !p.IsImage() && p.Type != CacheOnly {
			p.AttestPrefix = value
			return attestation.CheckFile(key, value+attestation.DefaultFile)
		}
	case "tar":
		tar := true
		err := truth(&tar)
		p.Dir = !tar
		return err
	case "attestation-inline":
		if p.IsImage() {
			return truth(&p.inline)
		}
	case "platform-split":
		if p.Type == Local || p.Type == Tar {
			p.Split = new(bool)
			return truth(p.Split)
		}
	case "src":
		if p.Type == Local || p.Type == Tar {
			if p.Source = value; value == "" {
				return fmt.Errorf("output %s: empty value for src; omit it to export the entire filesystem", p.Type)
			}
			return nil
		}
	case "source-date-epoch":
		p.Dated = true
		if value == "" {
			return nil
		}
		epoch, err := strconv.ParseInt(value, 10, 64)
		if err != nil || epoch < 0 {
			return fmt.Errorf("output %s: invalid SOURCE_DATE_EPOCH: %s", p.Type, value)
		}
		p.Epoch = &epoch
		return nil
	case "registry.insecure":
		if p.Type == Registry {
			return truth(&p.Insecure)
		}
	case "force-compression", "prefer-nondist-layers":
		asked := false
		if err := truth(&asked); err != nil || !asked {
			return err
		}
	case "set-id":
		if p.Type == Local {
			return truth(&p.Files.SetID)
		}
	case "devices":
		if p.Type == Local {
			return truth(&p.Files.Devices)
		}
	case "push":
		return nil // the type says so already
	case "push-by-digest":
		return truth(&p.ByDigest)
	case "name-canonical":
		if p.Type == Registry {
			return nil // it is about names in the store, where what is pushed by its digest has none
		}
	case "unpack":
		return nil // every image of the store is there in full, and unpacked when it is needed
	case "store":
		stored := true
		err := truth(&stored)
		if p.Unnamed = !stored; p.Unnamed && p.Type != Registry {
			return fmt.Errorf("output %s: store=false needs push=true", p.Type)
		}
		return err
	}
	if rest, ok := strings.CutPrefix(key, "annotation"); ok && p.IsImage() {
		return p.annotation(rest, value)
	}
	return fmt.Errorf("output %s: the key %s is not supported yet", p.Type, key)
}

// Date tells the outputs what SOURCE_DATE_EPOCH is, in Unix seconds; nil is for none. It is the time of all files of an output that is
// files; those of an image have no later times if rewrite-timestamp is set.
func Date(outputs []Plan, epoch *int64, warn func(string)) {
	product := epoch
	for i := range outputs {
		form := &outputs[i].Form.Layers
		epoch = outputs[i].EpochOf(product)
		switch {
		case form.Rewrite && epoch == nil:
			form.Rewrite = false
			warn("rewrite-timestamp does nothing without SOURCE_DATE_EPOCH: give one with --build-arg")
		case form.Rewrite:
			form.Epoch = *epoch
		case epoch != nil && !outputs[i].IsImage():
			t := time.Unix(*epoch, 0)
			outputs[i].Files.Epoch = &t
		}
	}
}

// image reports whether the output is an image, and not its files.
func (p Plan) IsImage() bool {
	return p.Type == Image || p.Type == Registry || p.Type == Docker || p.Type == OCI || p.Type == Storage
}

// toEngine reports whether the image goes into an engine, or into its storage.
func (p Plan) ToEngine() bool {
	return p.Type == Docker && !p.written() || p.Type == Storage
}

// FullNames returns image names in full: "app" is "docker.io/library/app:latest".
func FullNames(tags []string) ([]string, error) {
	var names []string
	for _, t := range tags {
		ref, err := imagename.Parse(t)
		if err != nil {
			return nil, err
		}
		names = append(names, ref.String())
	}
	return names, nil
}

// Pushed returns the names that outputs push to.
func Pushed(outputs []Plan) []string {
	var names []string
	for _, out := range outputs {
		if out.Type == Registry {
			names = append(names, out.Names...)
		}
	}
	return names
}

// OnlyForm returns the form in which all outputs need layers; false if one needs files, or they need different forms, or other times
// of files than steps gave them.
func OnlyForm(outputs []Plan) (blob.Encoding, bool) {
	form := outputs[0].Form.Layers
	for _, out := range outputs {
		if !out.IsImage() || out.Form.Layers != form {
			return form, false
		}
	}
	return form, !form.Rewrite
}

// Forms returns the forms of the images that outputs need.
func Forms(outputs []Plan) []blob.Encoding {
	var all []blob.Encoding
	for _, out := range outputs {
		if out.IsImage() {
			all = append(all, out.Form.Layers)
		}
	}
	return all
}

// Canonical returns names with the digest in place of the tag, each once.
func Canonical(names []string, d digest.Digest) ([]string, error) {
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
