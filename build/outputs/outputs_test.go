package outputs

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/llb"
)

// TestPlan holds what the keys of an output mean, and which outputs are refused before anything is built.
func TestPlan(t *testing.T) {
	arm := llb.Platform{OS: "linux", Architecture: "arm64"}
	for _, tc := range []struct {
		name      string
		export    Export
		platforms []llb.Platform
		err       string
		check     func(Plan) bool
	}{
		{name: "nothing is the image store, uncompressed", check: func(o Plan) bool {
			return o.Type == Image && o.Form.Layers.Type == "uncompressed" && slices.Equal(o.Names, []string{"docker.io/library/app:latest"})
		}},
		{name: "what is pushed is compressed", export: one(Registry), check: func(o Plan) bool { return o.Form.Layers.Type == "gzip" }},
		{name: "compression", export: one(OCI, "compression", "zstd", "compression-level", "3"), check: func(o Plan) bool {
			return o.Form.Layers.Type == "zstd"
		}},
		{name: "unknown compression", export: one(OCI, "compression", "lz4"), err: "lz4"},
		{name: "names of the output come before tags", export: one(Image, "name", "b:1,c"), check: func(o Plan) bool {
			return slices.Equal(o.Names, []string{"docker.io/library/b:1", "docker.io/library/c:latest"})
		}},
		{name: "invalid name", export: one(Image, "name", "a.-b"), err: `"a.-b"`},
		{name: "layout in a directory", export: one(OCI, "tar", "false"), check: func(o Plan) bool { return o.Dir }},
		{name: "Docker's media types", export: one(OCI, "oci-mediatypes", "false"), check: func(o Plan) bool { return o.Form.Docker }},
		{name: "neither true nor false", export: one(OCI, "tar", "maybe"), err: "tar=maybe is neither true nor false"},
		{name: "by digest", export: one(Registry, "push-by-digest", "1"), check: func(o Plan) bool { return o.ByDigest }},
		{name: "by digest without a push", export: one(Image, "push-by-digest", "1"), err: "needs push=true"},
		{name: "set-id of an image", export: one(Image, "set-id", "1"), err: "the key set-id is not supported"},
		{name: "set-id", export: one(Local, "set-id", ""), check: func(o Plan) bool { return o.Files.SetID && !o.Files.Devices }},
		{name: "rewrite-timestamp of files", export: one(Tar, "rewrite-timestamp", "1"), err: "rewrite-timestamp is not supported"},
		{name: "two platforms in a tar for docker load", export: Export{Outputs: []Output{{Type: Docker, Dest: "x"}}},
			platforms: []llb.Platform{llb.Host(), arm}, err: "one platform"},
		{name: "two platforms in podman's storage", export: one(Storage), platforms: []llb.Platform{llb.Host(), arm}, err: "one platform"},
		{name: "an engine gets layers that are not compressed", export: one(Docker), check: func(o Plan) bool {
			return o.Form.Layers.Type == "uncompressed"
		}},
		{name: "only what is pushed has no name in the store", export: one(Image, "store", "false"), err: "store=false needs push=true"},
		{name: "ID of files", export: Export{Outputs: one(Local).Outputs, IIDFile: "id"}, err: "--iidfile needs"},
		{name: "annotations of files", export: Export{Outputs: one(Tar).Outputs, Annotations: annotations(t, "a=b")}, err: "--annotation needs"},
		{name: "annotation", export: one(OCI, "annotation.k", "v"), check: func(o Plan) bool {
			return slices.Equal(o.Form.Annotations, []exporter.Annotation{{Part: exporter.OnManifest, Key: "k", Value: "v"}})
		}},
		{name: "annotation of the index of one platform", export: one(OCI, "annotation-index.k", "v"), err: "has no index"},
		{name: "annotation of the index", export: one(OCI, "annotation-index.k", "v"), platforms: []llb.Platform{llb.Host(), arm},
			check: func(o Plan) bool {
				return o.Form.Annotations[0].Part == exporter.OnIndex
			}},
		{name: "annotation of a platform that is not built", export: Export{Annotations: annotations(t, "manifest[linux/s390x]:a=b")},
			err: "not for linux/s390x"},
		{name: "annotation with Docker's media types", export: one(OCI, "oci-mediatypes", "false", "annotation.k", "v"),
			err: "have no annotations"},
		{name: "annotation without a key", export: one(OCI, "annotation", "v"), err: "is not annotation"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plans, err := tc.export.Plan([]string{"docker.io/library/app:latest"}, false)
			if err == nil {
				err = CheckPlatforms(plans, tc.platforms)
			}
			switch {
			case tc.err != "":
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %v, want an error with %q", err, tc.err)
				}
			case err != nil:
				t.Error(err)
			case len(plans) != 1 || !tc.check(plans[0]):
				t.Errorf("%+v", plans)
			}
		})
	}
	if _, err := (&Export{Outputs: one(Registry).Outputs}).Plan(nil, false); err == nil || !strings.Contains(err.Error(), "needs a name") {
		t.Errorf("a push without a name: %v", err)
	}
}

// one returns an Export to one output with keys and values.
func one(kind Type, attrs ...string) Export {
	out := Output{Type: kind, Attrs: map[string]string{}}
	for i := 0; i < len(attrs); i += 2 {
		out.Attrs[attrs[i]] = attrs[i+1]
	}
	return Export{Outputs: []Output{out}}
}

func annotations(t *testing.T, value string) []exporter.Annotation {
	t.Helper()
	all, err := exporter.ParseAnnotation(value)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// SOURCE_DATE_EPOCH is the time of all files of an output that is files, and bounds those of an image that asks for it.
func TestDate(t *testing.T) {
	plans := []Plan{{Output: Output{Type: Local}}, {Output: Output{Type: OCI}}, {Output: Output{Type: OCI}}}
	plans[2].Form.Layers.Rewrite = true
	var warnings []string
	warn := func(text string) { warnings = append(warnings, text) }
	epoch := int64(1500000000)
	Date(plans, &epoch, warn)
	if e := plans[0].Files.Epoch; e == nil || !e.Equal(time.Unix(epoch, 0)) {
		t.Errorf("the time of files is %v", e)
	}
	if plans[1].Form.Layers.Rewrite || plans[1].Files.Epoch != nil {
		t.Errorf("an image that did not ask for it: %+v", plans[1])
	}
	if f := plans[2].Form.Layers; !f.Rewrite || f.Epoch != epoch || len(warnings) > 0 {
		t.Errorf("%+v, warnings %q", f, warnings)
	}
	Date(plans[2:], nil, warn)
	if plans[2].Form.Layers.Rewrite || len(warnings) != 1 {
		t.Errorf("without an epoch: %+v, warnings %q", plans[2].Form.Layers, warnings)
	}
}

// Names for images have no digest, since that is not for the user to choose.
func TestCheckTag(t *testing.T) {
	for tag, ok := range map[string]bool{
		"app": true, "registry:5000/app:v1": true, "[::1]:5000/app": true, "a.-b": false, "A": false, "": false,
		"app@sha256:" + strings.Repeat("0", 64): false,
	} {
		if err := CheckTag(tag); (err == nil) != ok {
			t.Errorf("%q: %v", tag, err)
		}
	}
	names, err := Canonical([]string{"docker.io/library/a:1", "docker.io/library/a:2"}, "sha256:"+"00")
	if err != nil || !slices.Equal(names, []string{"docker.io/library/a@sha256:00"}) {
		t.Errorf("by digest: %q, %v", names, err)
	}
}
