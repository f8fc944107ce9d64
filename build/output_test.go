package build

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
		check     func(output) bool
	}{
		{name: "nothing is the image store, uncompressed", check: func(o output) bool {
			return o.Type == OutputImage && o.form.Layers.Type == "uncompressed" && slices.Equal(o.names, []string{"docker.io/library/app:latest"})
		}},
		{name: "what is pushed is compressed", export: one(OutputRegistry), check: func(o output) bool { return o.form.Layers.Type == "gzip" }},
		{name: "compression", export: one(OutputOCI, "compression", "zstd", "compression-level", "3"), check: func(o output) bool {
			return o.form.Layers.Type == "zstd"
		}},
		{name: "unknown compression", export: one(OutputOCI, "compression", "lz4"), err: "lz4"},
		{name: "names of the output come before tags", export: one(OutputImage, "name", "b:1,c"), check: func(o output) bool {
			return slices.Equal(o.names, []string{"docker.io/library/b:1", "docker.io/library/c:latest"})
		}},
		{name: "invalid name", export: one(OutputImage, "name", "a.-b"), err: `"a.-b"`},
		{name: "layout in a directory", export: one(OutputOCI, "tar", "false"), check: func(o output) bool { return o.dir }},
		{name: "Docker's media types", export: one(OutputOCI, "oci-mediatypes", "false"), check: func(o output) bool { return o.form.Docker }},
		{name: "neither true nor false", export: one(OutputOCI, "tar", "maybe"), err: "tar=maybe is neither true nor false"},
		{name: "by digest", export: one(OutputRegistry, "push-by-digest", "1"), check: func(o output) bool { return o.byDigest }},
		{name: "by digest without a push", export: one(OutputImage, "push-by-digest", "1"), err: "needs push=true"},
		{name: "set-id of an image", export: one(OutputImage, "set-id", "1"), err: "the key set-id is not supported"},
		{name: "set-id", export: one(OutputLocal, "set-id", ""), check: func(o output) bool { return o.files.SetID && !o.files.Devices }},
		{name: "rewrite-timestamp of files", export: one(OutputTar, "rewrite-timestamp", "1"), err: "rewrite-timestamp is not supported"},
		{name: "two platforms in a tar for docker load", export: Export{Outputs: []Output{{Type: OutputDocker, Dest: "x"}}},
			platforms: []llb.Platform{llb.Host(), arm}, err: "one platform"},
		{name: "two platforms in podman's storage", export: one(OutputStorage), platforms: []llb.Platform{llb.Host(), arm}, err: "one platform"},
		{name: "an engine gets layers that are not compressed", export: one(OutputDocker), check: func(o output) bool {
			return o.form.Layers.Type == "uncompressed"
		}},
		{name: "only what is pushed has no name in the store", export: one(OutputImage, "store", "false"), err: "store=false needs push=true"},
		{name: "ID of files", export: Export{Outputs: one(OutputLocal).Outputs, IIDFile: "id"}, err: "--iidfile needs"},
		{name: "annotations of files", export: Export{Outputs: one(OutputTar).Outputs, Annotations: annotations(t, "a=b")}, err: "--annotation needs"},
		{name: "annotation", export: one(OutputOCI, "annotation.k", "v"), check: func(o output) bool {
			return slices.Equal(o.form.Annotations, []exporter.Annotation{{Part: exporter.OnManifest, Key: "k", Value: "v"}})
		}},
		{name: "annotation of the index of one platform", export: one(OutputOCI, "annotation-index.k", "v"), err: "has no index"},
		{name: "annotation of the index", export: one(OutputOCI, "annotation-index.k", "v"), platforms: []llb.Platform{llb.Host(), arm}, check: func(o output) bool {
			return o.form.Annotations[0].Part == exporter.OnIndex
		}},
		{name: "annotation of a platform that is not built", export: Export{Annotations: annotations(t, "manifest[linux/s390x]:a=b")}, err: "not for linux/s390x"},
		{name: "annotation with Docker's media types", export: one(OutputOCI, "oci-mediatypes", "false", "annotation.k", "v"), err: "have no annotations"},
		{name: "annotation without a key", export: one(OutputOCI, "annotation", "v"), err: "is not annotation"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plans, err := tc.export.plan([]string{"docker.io/library/app:latest"}, tc.platforms, false)
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
	if _, err := (&Export{Outputs: one(OutputRegistry).Outputs}).plan(nil, nil, false); err == nil || !strings.Contains(err.Error(), "needs a name") {
		t.Errorf("a push without a name: %v", err)
	}
}

// one returns an Export to one output with keys and values.
func one(kind OutputType, attrs ...string) Export {
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
	plans := []output{{Output: Output{Type: OutputLocal}}, {Output: Output{Type: OutputOCI}}, {Output: Output{Type: OutputOCI}}}
	plans[2].form.Layers.Rewrite = true
	var warnings []string
	warn := func(text string) { warnings = append(warnings, text) }
	epoch := int64(1500000000)
	date(plans, &epoch, warn)
	if e := plans[0].files.Epoch; e == nil || !e.Equal(time.Unix(epoch, 0)) {
		t.Errorf("the time of files is %v", e)
	}
	if plans[1].form.Layers.Rewrite || plans[1].files.Epoch != nil {
		t.Errorf("an image that did not ask for it: %+v", plans[1])
	}
	if f := plans[2].form.Layers; !f.Rewrite || f.Epoch != epoch || len(warnings) > 0 {
		t.Errorf("%+v, warnings %q", f, warnings)
	}
	date(plans[2:], nil, warn)
	if plans[2].form.Layers.Rewrite || len(warnings) != 1 {
		t.Errorf("without an epoch: %+v, warnings %q", plans[2].form.Layers, warnings)
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
	names, err := canonical([]string{"docker.io/library/a:1", "docker.io/library/a:2"}, "sha256:"+"00")
	if err != nil || !slices.Equal(names, []string{"docker.io/library/a@sha256:00"}) {
		t.Errorf("by digest: %q, %v", names, err)
	}
}
