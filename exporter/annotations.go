package exporter

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/kilnbuild/kiln/llb"
)

// rewrittenAnnotation is on a layer whose files have no times after the SOURCE_DATE_EPOCH that is its value, as by BuildKit
// (util/converter/converter.go).
const rewrittenAnnotation = "buildkit/rewritten-timestamp"

// Annotation is a key and a value for one of the parts that describe an image (image-spec, annotations.md).
type Annotation struct {
	Part Part
	// Platform is that of the images it is for, as Image has it; "" for all. An index has none.
	Platform   string
	Key, Value string
}

// Part is what an annotation is on, by BuildKit's name.
type Part string

// The parts. A descriptor is the entry of the index that refers to the manifest, or of the store's or layout's index.json.
const (
	OnManifest           Part = "manifest"
	OnManifestDescriptor Part = "manifest-descriptor"
	OnIndex              Part = "index"
	OnIndexDescriptor    Part = "index-descriptor"
)

var parts = []Part{OnManifest, OnManifestDescriptor, OnIndex, OnIndexDescriptor}

// ParsePart reads "PART" or "PART[PLATFORM]". The platform is as it was written.
func ParsePart(s string) (part Part, platform string, err error) {
	name, rest, has := strings.Cut(s, "[")
	part = Part(name)
	if !slices.Contains(parts, part) {
		return "", "", fmt.Errorf("an annotation is on manifest, manifest-descriptor, index or index-descriptor, not on %q", name)
	}
	if !has {
		return part, "", nil
	}
	platform, closed := strings.CutSuffix(rest, "]")
	if !closed || platform == "" {
		return "", "", fmt.Errorf("%q is not %s[PLATFORM]", s, name)
	}
	if part == OnIndex || part == OnIndexDescriptor {
		return "", "", fmt.Errorf("%q: an index is that of all platforms", s)
	}
	return part, platform, nil
}

// on returns the annotations of a part of the image for a platform; nil where there are none. Those for the platform alone win, and
// else the last ones.
func on(all []Annotation, part Part, platform string) map[string]string {
	var out map[string]string
	for _, of := range []string{"", platform} {
		for _, a := range all {
			if a.Part != part || a.Platform != of {
				continue
			}
			if out == nil {
				out = map[string]string{}
			}
			out[a.Key] = a.Value
		}
	}
	return out
}

// ParseAnnotation reads "[PART[[PLATFORM]],…:]KEY=VALUE", as --annotation takes it; without a part it is on the manifest.
func ParseAnnotation(s string) ([]Annotation, error) {
	where, value, ok := strings.Cut(s, "=")
	if !ok {
		return nil, errors.New("it is not KEY=VALUE")
	}
	on, key, ok := strings.Cut(where, ":")
	if !ok {
		on, key = string(OnManifest), where
	}
	var all []Annotation
	for part := range strings.SplitSeq(on, ",") {
		a, err := NewAnnotation(part, key, value)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// NewAnnotation returns the annotation of PART[[PLATFORM]].
func NewAnnotation(on, key, value string) (a Annotation, err error) {
	a.Key, a.Value = key, value
	if key == "" || strings.ContainsFunc(key, unicode.IsSpace) {
		return a, fmt.Errorf("%q is not a valid key of an annotation", key)
	}
	var platform string
	if a.Part, platform, err = ParsePart(on); err != nil || platform == "" {
		return a, err
	}
	p, err := llb.ParsePlatform(platform, llb.Host())
	a.Platform = p.String()
	return a, err
}
