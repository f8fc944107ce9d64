package exporter

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/kilnbuild/kiln/internal/suggest"
	"github.com/kilnbuild/kiln/llb"
)

// rewrittenAnnotation is set on a layer whose file times were limited to a SOURCE_DATE_EPOCH, which is its value, as in BuildKit
// (util/converter/converter.go).
const rewrittenAnnotation = "buildkit/rewritten-timestamp"

// Annotation is an annotation of one of the parts that describe an image (image-spec, annotations.md).
type Annotation struct {
	Part Part
	// Platform is the platform of the images it applies to, as in Image, or "" for all. It is "" for an index.
	Platform   string
	Key, Value string
}

// Part is the part of an image that an annotation is set on, named as in BuildKit.
type Part string

// The parts of an image. A descriptor is the entry that refers to the manifest in the index, or in index.json of the store or
// layout.
const (
	OnManifest           Part = "manifest"
	OnManifestDescriptor Part = "manifest-descriptor"
	OnIndex              Part = "index"
	OnIndexDescriptor    Part = "index-descriptor"
)

var parts = []Part{OnManifest, OnManifestDescriptor, OnIndex, OnIndexDescriptor}

// ParsePart parses "PART" or "PART[PLATFORM]". The platform is returned as written.
func ParsePart(s string) (part Part, platform string, err error) {
	name, rest, has := strings.Cut(s, "[")
	part = Part(name)
	if !slices.Contains(parts, part) {
		return "", "", fmt.Errorf("the part of an annotation is manifest, manifest-descriptor, index or index-descriptor, not %q%s",
			name, suggest.Hint(name, "manifest", "manifest-descriptor", "index", "index-descriptor"))
	}
	if !has {
		return part, "", nil
	}
	platform, closed := strings.CutSuffix(rest, "]")
	if !closed || platform == "" {
		return "", "", fmt.Errorf("%q is not %s[PLATFORM]", s, name)
	}
	if part == OnIndex || part == OnIndexDescriptor {
		return "", "", fmt.Errorf("%q: an index is for all platforms", s)
	}
	return part, platform, nil
}

// on returns the annotations of a part of the image for a platform, or nil if there are none. Annotations for the platform take
// precedence over those for all platforms, and later ones over earlier ones.
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

// ParseAnnotation parses "[PART[[PLATFORM]],…:]KEY=VALUE", the value of --annotation. The default part is the manifest.
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

// AnnotationOf returns the annotation whose key is "annotation" and rest, where rest is "[-PART][[PLATFORM]].KEY".
func AnnotationOf(rest, value string) (Annotation, error) {
	on, key, ok := strings.Cut(rest, ".")
	switch {
	case !ok:
		return Annotation{}, fmt.Errorf("annotation%s is not annotation[-PART][[PLATFORM]].KEY", rest)
	case strings.HasPrefix(on, "-"):
		on = on[1:]
	default:
		on = string(OnManifest) + on
	}
	return NewAnnotation(on, key, value)
}

// NewAnnotation returns the annotation of PART[[PLATFORM]].
func NewAnnotation(on, key, value string) (a Annotation, err error) {
	a.Key, a.Value = key, value
	if key == "" || strings.ContainsFunc(key, unicode.IsSpace) {
		return a, fmt.Errorf("%q is not a valid annotation key", key)
	}
	var platform string
	if a.Part, platform, err = ParsePart(on); err != nil || platform == "" {
		return a, err
	}
	p, err := llb.ParsePlatform(platform, llb.Host())
	a.Platform = p.String()
	return a, err
}
