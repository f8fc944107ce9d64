package build

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/build/reproduce"
	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/imagename"
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

// stdout stands for standard output as the Dest of an Output.
const stdout = "-"

// OutputType is a kind of Output.
type OutputType string

// The types of --output. "image" with push=true is OutputRegistry: they ask for the same.
const (
	// OutputImage puts the image into the store.
	OutputImage OutputType = "image"
	// OutputRegistry pushes the image and puts it into the store.
	OutputRegistry OutputType = "registry"
	// OutputDocker writes a tar that docker load reads; with no Dest it puts the image into docker's or podman's engine, and into the store.
	OutputDocker OutputType = "docker"
	// OutputStorage puts the image into the storage of podman, and into the store.
	OutputStorage OutputType = "containers-storage"
	// OutputOCI writes an OCI image layout: a tar, or with tar=false a directory.
	OutputOCI OutputType = "oci"
	// OutputLocal writes the root file system's files to a directory.
	OutputLocal OutputType = "local"
	// OutputTar writes the root file system as a tar.
	OutputTar OutputType = "tar"
	// OutputCacheOnly fills the cache and keeps no image.
	OutputCacheOnly OutputType = "cacheonly"
)

// Output is one thing to do with the result.
type Output struct {
	Type OutputType
	// Dest is a file or directory; "-" is standard output, "" none. OutputOCI, OutputLocal and OutputTar always have one.
	Dest string
	// Attrs are the other keys of --output, in lower case, as written: "name", "compression", "tar", …
	Attrs map[string]string
}

// output is an Output whose attributes have been read.
type output struct {
	Output
	form  exporter.Form
	names []string
	dir   bool                // OutputOCI: a directory instead of a tar
	files exporter.DirOptions // of OutputLocal
	// byDigest is of OutputRegistry: the image gets no tag there. unnamed says that it gets no name in the store.
	byDigest, unnamed bool
	// attest are the attestations that the output gets, and attestPrefix begins the names of files with them. noArtifact gives their
	// manifests the form of an image.
	attest       attestation.Options
	attestPrefix string
	noArtifact   bool
	// target is where the image goes that is put into an engine: see Job.prepare.
	target target
}

// plan reads and checks what is to be done with the result, before anything is built. reproducible says that the digest of an image has to
// be the same on every host.
func (x *Export) plan(names []string, platforms []llb.Platform, reproducible bool) ([]output, error) {
	all := x.Outputs
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
		if err := plan.setAttestations(&x.Attest); err != nil {
			return nil, err
		}
		kind, level := spec.Attrs["compression"], spec.Attrs["compression-level"]
		// What is attested is pushed as it is.
		if kind == "" && level == "" && (plan.Type == OutputImage && !plan.attest.Any() || plan.toEngine()) {
			kind = blob.Uncompressed.Type
		}
		var err error
		if plan.form.Layers.Compression, err = blob.ParseCompression(kind, level); err != nil {
			return nil, err
		}
		if plan.image() {
			plan.form.Annotations = append(plan.form.Annotations, x.Annotations...)
		}
		if _, given := spec.Attrs["rewrite-timestamp"]; reproducible && plan.image() {
			if err := reproduce.Date(&plan.form.Layers, given); err != nil {
				return nil, fmt.Errorf("output %s: %w", spec.Type, err)
			}
		}
		if err := plan.checkAnnotations(platforms); err != nil {
			return nil, err
		}
		switch {
		case plan.Type == OutputRegistry && len(plan.names) == 0:
			return nil, errors.New("pushing needs a name: give one with -t")
		case plan.Type == OutputStorage && len(plan.names) == 0:
			return nil, errors.New("containers-storage needs a name: give one with -t")
		case plan.byDigest && plan.Type != OutputRegistry:
			return nil, fmt.Errorf("output %s: push-by-digest needs push=true", plan.Type)
		case plan.dir && plan.Type != OutputOCI && plan.Dest == "":
			return nil, fmt.Errorf("output %s: tar=false needs dest=DIRECTORY", plan.Type)
		case plan.Type == OutputDocker && plan.Dest != "" && len(platforms) > 1:
			return nil, errors.New("a tar for docker load holds one platform: give one --platform, or use type=oci")
		case plan.Type == OutputStorage && len(platforms) > 1:
			return nil, errors.New("podman's storage holds one platform under a name: give one --platform")
		}
		out = append(out, plan)
	}
	if x.Attest.Any() && !slices.ContainsFunc(out, func(p output) bool { return p.attest.Any() }) && !x.Attest.InlineOnly() {
		return nil, errors.New("attestations need an output that they are written to")
	}
	if !slices.ContainsFunc(out, output.image) {
		switch {
		case x.IIDFile != "":
			return nil, errors.New("--iidfile needs an output that is an image")
		case len(x.Annotations) > 0:
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
	case "oci-artifact":
		if p.image() {
			artifact := true
			err := truth(&artifact)
			p.noArtifact = !artifact
			return err
		}
	case "attestation-prefix":
		if !p.image() && p.Type != OutputCacheOnly {
			p.attestPrefix = value
			return attestation.CheckFile(key, value+attestation.DefaultFile)
		}
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
			return nil // it is about names in the store, where what is pushed by its digest has none
		}
	case "unpack":
		return nil // every image of the store is there in full, and unpacked when it is needed
	case "store":
		stored := true
		err := truth(&stored)
		if p.unnamed = !stored; p.unnamed && p.Type != OutputRegistry {
			return fmt.Errorf("output %s: store=false needs push=true", p.Type)
		}
		return err
	}
	if rest, ok := strings.CutPrefix(key, "annotation"); ok && p.image() {
		return p.annotation(rest, value)
	}
	return fmt.Errorf("output %s: the key %s is not supported yet", p.Type, key)
}

// date tells the outputs what SOURCE_DATE_EPOCH is, in Unix seconds; nil is for none. It is the time of all files of an output that is
// files; those of an image have no later times if rewrite-timestamp is set.
func date(outputs []output, epoch *int64, warn func(string)) {
	for i := range outputs {
		form := &outputs[i].form.Layers
		switch {
		case form.Rewrite && epoch == nil:
			form.Rewrite = false
			warn("rewrite-timestamp does nothing without SOURCE_DATE_EPOCH: give one with --build-arg")
		case form.Rewrite:
			form.Epoch = *epoch
		case epoch != nil && !outputs[i].image():
			t := time.Unix(*epoch, 0)
			outputs[i].files.Epoch = &t
		}
	}
}

// image reports whether the output is an image, and not its files.
func (p output) image() bool {
	return p.Type == OutputImage || p.Type == OutputRegistry || p.Type == OutputDocker || p.Type == OutputOCI || p.Type == OutputStorage
}

// toEngine reports whether the image goes into an engine, or into its storage.
func (p output) toEngine() bool {
	return p.Type == OutputDocker && p.Dest == "" || p.Type == OutputStorage
}

// fullNames returns image names in full: "app" is "docker.io/library/app:latest".
func fullNames(tags []string) ([]string, error) {
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

// pushed returns the names that outputs push to.
func pushed(outputs []output) []string {
	var names []string
	for _, out := range outputs {
		if out.Type == OutputRegistry {
			names = append(names, out.names...)
		}
	}
	return names
}

// onlyForm returns the form in which all outputs need layers; false if one needs files, or they need different forms, or other times
// of files than steps gave them.
func onlyForm(outputs []output) (blob.Encoding, bool) {
	form := outputs[0].form.Layers
	for _, out := range outputs {
		if !out.image() || out.form.Layers != form {
			return form, false
		}
	}
	return form, !form.Rewrite
}

// forms returns the forms of the images that outputs need.
func forms(outputs []output) []blob.Encoding {
	var all []blob.Encoding
	for _, out := range outputs {
		if out.image() {
			all = append(all, out.form.Layers)
		}
	}
	return all
}
