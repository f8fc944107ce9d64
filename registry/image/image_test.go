package image

import (
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`), "")
	f.Fuzz(func(t *testing.T, data []byte, declared string) {
		doc, err := Parse(data, declared)
		if err == nil && (doc.Manifest == nil) == (doc.Index == nil) {
			t.Error("it is both or neither")
		}
	})
}

// TestFit says which platforms' images run on which, and which is taken of several.
// TestFitVersion: an image for a revision of an OS version is one for the version, and not the other way around.
func TestFitVersion(t *testing.T) {
	for _, c := range []struct {
		want, have string
		fits       bool
	}{
		{"10.0.20348", "10.0.20348.2700", true}, {"10.0.20348", "10.0.20348", true}, {"10.0.20348.2700", "10.0.20348", false},
		{"10.0.2034", "10.0.20348", false}, {"10.0.20348", "10.0.17763.1", false}, {"10.0.20348", "", false}, {"", "10.0.20348", true},
	} {
		have := ocispec.Platform{OS: "windows", Architecture: "amd64", OSVersion: c.have}
		if fit := Fit(ocispec.Platform{OS: "windows", Architecture: "amd64", OSVersion: c.want}, have); fit > 0 != c.fits {
			t.Errorf("an image for %q fits %q: %d", c.have, c.want, fit)
		}
	}
}

func TestFit(t *testing.T) {
	for _, tt := range []struct {
		want string
		have []string // the best first
		not  []string
	}{
		{"linux/amd64", []string{"linux/amd64", "linux/386"}, []string{"linux/arm64", "linux/arm", "windows/amd64", "windows/386", "linux/amd64/v2"}},
		{"linux/amd64/v3", []string{"linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"}, []string{"linux/amd64/v4"}},
		{"linux/arm64", []string{"linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"}, []string{"linux/arm64/v9", "linux/amd64", "linux/386"}},
		{"linux/arm64/v9", []string{"linux/arm64/v9", "linux/arm64/v8", "linux/arm/v8", "linux/arm/v7"}, nil},
		{"linux/arm/v7", []string{"linux/arm/v7", "linux/arm/v6", "linux/arm/v5"}, []string{"linux/arm64", "linux/arm/v8"}},
		{"linux/386", []string{"linux/386"}, []string{"linux/amd64"}},
	} {
		last := 1 << 30
		for _, p := range tt.have {
			n := Fit(parse(tt.want), parse(p))
			if n <= 0 || n >= last {
				t.Errorf("%s on %s fits %d, after %d", p, tt.want, n, last)
			}
			last = n
		}
		for _, p := range tt.not {
			if n := Fit(parse(tt.want), parse(p)); n != 0 {
				t.Errorf("%s on %s fits %d", p, tt.want, n)
			}
		}
	}
}

func parse(s string) ocispec.Platform {
	parts := append(strings.Split(s, "/"), "")
	return ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
}

// TestNotAnImage has an index whose only entry for the platform is something else.
func TestNotAnImage(t *testing.T) {
	amd64 := ocispec.Platform{OS: "linux", Architecture: "amd64"}
	list := []ocispec.Descriptor{
		{MediaType: "application/x-disk", Platform: &amd64},
		{MediaType: ocispec.MediaTypeImageManifest, Platform: &ocispec.Platform{OS: "linux", Architecture: "arm64"}},
	}
	if fitting, _ := Choose(list, amd64); len(fitting) != 0 {
		t.Errorf("Choose takes %v", fitting)
	}
	got := (&PlatformError{Ref: "app", Want: "linux/amd64", Have: DescribePlatforms(list)}).Error()
	const want = `app has no image for linux/amd64; it has linux/amd64 (not an image: its media type is "application/x-disk"), linux/arm64`
	if got != want {
		t.Errorf("%s", got)
	}
}
