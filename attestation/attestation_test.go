package attestation

import (
	"encoding/json"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/imagename"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestSet holds what the values of --attest mean.
func TestSet(t *testing.T) {
	usual := Provenance{Max: true, PredicateType: SLSA1, File: DefaultFile}
	with := func(change func(*Provenance)) Options {
		p := usual
		change(&p)
		return Options{Provenance: &p}
	}
	for _, tc := range []struct {
		kind, values string
		want         Options
		err          string
	}{
		{"provenance", "", Options{Provenance: &usual}, ""},
		{"provenance", "disabled=true", Options{NoProvenance: true}, ""},
		{"provenance", "mode=min version=v0.2", with(func(p *Provenance) { p.Max, p.PredicateType = false, SLSA02 }), ""},
		{"provenance", "mode=full", Options{Provenance: &usual}, ""},
		{"provenance", "builder-id=x filename=y inline-only=1 reproducible=true complete-materials=t anonymous=true", with(func(p *Provenance) {
			p.BuilderID, p.File, p.InlineOnly, p.Reproducible, p.Complete, p.Anonymous = "x", "y", true, true, true, true
		}), ""},
		{"provenance", "capture-usage=false", Options{Provenance: &usual}, ""},
		{"provenance", "mode=", Options{}, "mode= is neither min nor max"},
		{"provenance", "filename=a/b", Options{}, "not the name of a file"},
		{"provenance", "filename=..", Options{}, "not the name of a file"},
		{"provenance", "filename=", Options{}, "not the name of a file"},
		{"provenance", "generator=x", Options{}, "provenance has no generator"},
		{"provenance", "disabled=no", Options{}, "disabled=no is neither true nor false"},
		{"sbom", "", Options{SBOM: &SBOM{Attrs: map[string]string{}}}, ""},
		{"sbom", "generator=scanner scan=all inline-only=true", Options{SBOM: &SBOM{
			Generator: "scanner", Attrs: map[string]string{"scan": "all"}, InlineOnly: true,
		}}, ""},
		{"sbom", "scan=all", Options{}, "the built-in scanner has no scan"},
		{"sbom", "disabled=true", Options{}, ""},
		{"", "mode=max", Options{}, "it has no type"},
		{"vex", "", Options{}, "there is no attestation of type=vex"},
	} {
		values := map[string]string{}
		for field := range strings.FieldsSeq(tc.values) {
			k, v, _ := strings.Cut(field, "=")
			values[k] = v
		}
		before := maps.Clone(values)
		var got Options
		err := got.Set(tc.kind, values)
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s %s: got %v, want an error with %q", tc.kind, tc.values, err, tc.err)
			}
		case err != nil || !reflect.DeepEqual(got, tc.want):
			t.Errorf("%s %s: got %+v, %v, want %+v", tc.kind, tc.values, got, err, tc.want)
		case got.Set(tc.kind, values) == nil && tc.want.Any():
			t.Errorf("%s %s is accepted twice", tc.kind, tc.values)
		}
		if !maps.Equal(values, before) {
			t.Errorf("%s %s: the values were changed", tc.kind, tc.values)
		}
	}
}

// TestImageURL holds what BuildKit writes (util/purl).
func TestImageURL(t *testing.T) {
	d := digest.FromString("x").String()
	for name, want := range map[string]string{
		"app":                           "pkg:docker/app@latest?platform=linux%2Farm64",
		"a/b:v1":                        "pkg:docker/a/b@v1?platform=linux%2Farm64",
		"localhost:5000/a/b/c":          "pkg:docker/localhost:5000/a/b/c@latest?platform=linux%2Farm64",
		"app@" + d:                      "pkg:docker/app?digest=" + d + "&platform=linux%2Farm64",
		"ghcr.io/app:v1@" + d:           "pkg:docker/ghcr.io/app@v1?digest=" + d + "&platform=linux%2Farm64",
		"[::1]:5000/app":                "pkg:docker/%5B::1%5D:5000/app@latest?platform=linux%2Farm64",
		"docker.io/library/debian:12_a": "pkg:docker/debian@12_a?platform=linux%2Farm64",
	} {
		ref, err := imagename.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := ImageURL("docker", ref, "linux/arm64"); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// TestIsImage holds which entries of an index are images.
func TestIsImage(t *testing.T) {
	unknown := Unknown()
	beside := map[string]string{TypeAnnotation: TypeManifest, DigestAnnotation: "sha256:1"}
	for _, tc := range []struct {
		name           string
		desc           ocispec.Descriptor
		image, attests bool
	}{
		{"an image", ocispec.Descriptor{Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}}, true, false},
		{"one without a platform", ocispec.Descriptor{}, true, false},
		{"attestations", ocispec.Descriptor{Platform: &unknown, Annotations: beside}, false, true},
		{"attestations without a platform", ocispec.Descriptor{Annotations: beside}, false, true},
		{"something else", ocispec.Descriptor{Platform: &unknown}, false, false},
		{"attestations of nothing", ocispec.Descriptor{Annotations: map[string]string{TypeAnnotation: TypeManifest}}, false, false},
	} {
		if got := IsImage(tc.desc); got != tc.image {
			t.Errorf("%s: IsImage is %t", tc.name, got)
		}
		if _, got := Subject(tc.desc); got != tc.attests {
			t.Errorf("%s: Subject is %t", tc.name, got)
		}
	}
}

// FuzzParseStatement reads what registries send.
func FuzzParseStatement(f *testing.F) {
	a := Attestation{PredicateType: SPDX, Predicate: json.RawMessage(`{"a":1}`)}
	data, err := json.Marshal(a.Statement(nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v0.1","subject":[{"name":"_","digest":{"sha256":"00"}}],"predicateType":"x"}`))
	f.Add([]byte(`{"_type":"https://in-toto.io/Link/v1"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseStatement(data)
		if (s == nil) == (err == nil) {
			t.Fatalf("%v, %v", s, err)
		}
		if err == nil && s.PredicateType == "" {
			t.Error("a statement about nothing")
		}
	})
}
