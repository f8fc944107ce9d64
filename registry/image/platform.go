package image

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/attestation"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/termtext"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// PlatformError says that an image does not exist for a platform.
type PlatformError struct {
	// Ref is the image's name.
	Ref string
	// Want is the platform asked for, Have those that exist, as "os/arch[/variant]".
	Want string
	Have []string
}

func (e *PlatformError) Error() string {
	if len(e.Have) == 0 {
		return fmt.Sprintf("%s has no image for any platform", e.Ref)
	}
	return fmt.Sprintf("%s has no image for %s; it has %s", e.Ref, e.Want, termtext.List(e.Have))
}

// normal returns a platform with the names of Go and OCI, and with default variants.
func normal(p ocispec.Platform) ocispec.Platform {
	p.OS = strings.ToLower(p.OS)
	p.Architecture = strings.ToLower(p.Architecture)
	p.Variant = strings.ToLower(p.Variant)
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "i386", "i686":
		p.Architecture = "386"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	}
	if p.Variant != "" && p.Variant[0] != 'v' {
		p.Variant = "v" + p.Variant
	}
	if p.Variant == "" {
		switch p.Architecture {
		case "amd64":
			p.Variant = "v1"
		case "arm64":
			p.Variant = "v8"
		case "arm":
			p.Variant = "v7"
		}
	}
	return p
}

// PlatformName returns "os[(version)]/arch[/variant]".
func PlatformName(p ocispec.Platform) string {
	s := p.OS
	if p.OSVersion != "" {
		s += "(" + p.OSVersion + ")"
	}
	s += "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// Fit returns how well an image for have runs on want: 0 not at all, else more for a platform nearer to want's.
func Fit(want, have ocispec.Platform) int {
	want, have = normal(want), normal(have)
	if want.OS != have.OS || !fitVersion(want.OSVersion, have.OSVersion) {
		return 0
	}
	// The 32-bit architecture whose programs the kernel of a 64-bit one runs too.
	lesser, variant := "", want.Variant
	switch want.Architecture {
	case "amd64":
		lesser, variant = "386", ""
	case "arm64":
		lesser, variant = "arm", "v8"
	}
	switch {
	case want.Architecture == have.Architecture:
		return fitVariant(want, have.Variant)
	case have.Architecture == lesser && want.OS == "linux":
		want.Architecture, want.Variant = lesser, variant
		return fitVariant(want, have.Variant) / 2
	}
	return 0
}

// fitVersion reports whether the OS version have equals want, or is a revision of it, as 10.0.20348.2700 is of 10.0.20348. An empty want
// matches any version.
func fitVersion(want, have string) bool {
	return want == "" || have == want || strings.HasPrefix(have, want+".")
}

// fitVariant is Fit for a variant of want's architecture: a later one runs what was made for an earlier one.
func fitVariant(want ocispec.Platform, have string) int {
	if want.Variant == have {
		return 1000
	}
	switch want.Architecture {
	case "amd64", "arm64", "arm":
		w, werr := strconv.Atoi(strings.TrimPrefix(want.Variant, "v"))
		h, herr := strconv.Atoi(strings.TrimPrefix(have, "v"))
		if werr == nil && herr == nil && 0 < h && h < w && w < 100 {
			return 1000 - 2*(w-h)
		}
	}
	return 0
}

// Choose returns the entries of an index for platforms that fit want, the best first, and those without a platform.
func Choose(descs []ocispec.Descriptor, want ocispec.Platform) (fitting, unsaid []ocispec.Descriptor) {
	for _, d := range descs {
		switch {
		case !isDocument(d) || !attestation.IsImage(d):
		case d.Platform == nil || d.Platform.OS == "" && d.Platform.Architecture == "":
			unsaid = append(unsaid, d)
		case Fit(want, *d.Platform) > 0:
			fitting = append(fitting, d)
		}
	}
	slices.SortStableFunc(fitting, func(a, b ocispec.Descriptor) int { return Fit(want, *b.Platform) - Fit(want, *a.Platform) })
	return fitting, unsaid
}

// isDocument reports whether an entry of an index is said to be a manifest or an index.
func isDocument(d ocispec.Descriptor) bool {
	return cas.IsManifest(d.MediaType) || cas.IsIndex(d.MediaType)
}

// DescribePlatforms returns the names of platforms, each once. One that an index has only as something else than an image says so.
func DescribePlatforms(descs []ocispec.Descriptor) []string {
	var names []string
	seen := map[string]bool{}
	for _, d := range descs {
		if d.Platform == nil || !attestation.IsImage(d) {
			continue
		}
		name := PlatformName(*d.Platform)
		if !isDocument(d) {
			name += fmt.Sprintf(" (not an image: its media type is %q)", d.MediaType)
		}
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}
