package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/internal/config"
	"github.com/kilnbuild/kiln/internal/ctxtest"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/store"
	"github.com/opencontainers/go-digest"
)

// file is a member of an archive: a link if it has a target.
type file struct{ name, target, data string }

func archiveOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f.data))}
		if f.target != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.target
		}
		err := w.WriteHeader(h)
		if err == nil {
			_, err = w.Write([]byte(f.data))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func openImages(t testing.TB) *Images {
	t.Helper()
	root, err := store.Open(context.Background(), t.TempDir(), &config.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return New(root, registry.New(nil))
}

const oneLayer = `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"]}}`

// TestLoadRefuses loads archives that are wrong each in one way.
func TestLoadRefuses(t *testing.T) {
	set := openImages(t)
	layer := file{name: "l.tar", data: string(make([]byte, 1024))}
	for why, files := range map[string][]file{
		"a link that leads to itself": {{name: "manifest.json", data: `[{"Config":"c.json","Layers":["x"]}]`}, {name: "c.json", data: oneLayer}, {name: "x", target: "x"}},
		"a configuration outside":     {{name: "manifest.json", data: `[{"Config":"../../etc/passwd","Layers":["l.tar"]}]`}, layer},
		"no JSON":                     {{name: "manifest.json", data: `[`}},
		"no images":                   {{name: "manifest.json", data: `[]`}},
		"an index without a digest":   {{name: "oci-layout", data: `{}`}, {name: "index.json", data: `{"manifests":[{"digest":"../x","size":1}]}`}},
		"too few layers":              {{name: "manifest.json", data: `[{"Config":"c.json","Layers":[]}]`}, {name: "c.json", data: oneLayer}},
		"a name that is invalid":      {{name: "manifest.json", data: `[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["A B"]}]`}, {name: "c.json", data: oneLayer}, layer},
		"a name as an id":             {{name: "manifest.json", data: `[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["sha256:f266d068b4be"]}]`}, {name: "c.json", data: oneLayer}, layer},
		"another digest":              {{name: "blobs/sha256/5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef", data: "x"}},
		"a blob without a digest":     {{name: "blobs/sha256/../../x", data: "x"}, {name: "blobs/sha256/zz", data: "x"}},
	} {
		if got, err := set.Load(t.Context(), bytes.NewReader(archiveOf(t, files...)), LoadOptions{}); !errors.As(err, new(*ArchiveError)) {
			t.Errorf("%s: %v, %v", why, got, err)
		}
	}
	if all, err := set.List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("the store lists %+v, %v", all, err)
	}
	good := archiveOf(t, file{name: "manifest.json", data: `[{"Config":"c.json","Layers":["a/layer.tar"],"RepoTags":["app:v1"]}]`},
		file{name: "c.json", data: oneLayer}, file{name: "a/layer.tar", target: "../l.tar"}, layer)
	if got, err := set.Load(t.Context(), bytes.NewReader(good), LoadOptions{}); err != nil || len(got) != 1 || got[0].Names[0] != "docker.io/library/app:v1" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := set.Load(ctxtest.EndAfter(1), bytes.NewReader(good), LoadOptions{}); !errors.Is(err, ctxtest.ErrEnded) {
		t.Errorf("Load: %v", err)
	}
}

// TestLoadLayerTypes loads images whose layer has a media type that is a tar's, or not.
func TestLoadLayerTypes(t *testing.T) {
	set := openImages(t)
	blob := func(data string) (file, string) {
		sum := digest.FromString(data)
		return file{name: "blobs/sha256/" + sum.Encoded(), data: data}, fmt.Sprintf(`"digest":"%s","size":%d`, sum, len(data))
	}
	layer, layerDesc := blob(string(make([]byte, 1024)))
	config, configDesc := blob(oneLayer)
	for mediaType, good := range map[string]bool{
		"application/vnd.oci.image.layer.v1.tar":                true,
		"application/vnd.docker.image.rootfs.diff.tar":          true,
		"application/vnd.oci.image.layer.v1.tar+encrypted":      false,
		"application/vnd.oci.image.layer.v1.tar+gzip+encrypted": false,
		"application/vnd.wasm":                                  false,
		"application/vnd.wasm.content.layer.v1+wasm":            false,
		"": false,
	} {
		manifest, manifestDesc := blob(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{` +
			`"mediaType":"application/vnd.oci.image.config.v1+json",` + configDesc + `},"layers":[{"mediaType":"` + mediaType + `",` + layerDesc + `}]}`)
		archive := archiveOf(t, file{name: "oci-layout", data: `{"imageLayoutVersion":"1.0.0"}`}, layer, config, manifest, file{name: "index.json",
			data: `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",` + manifestDesc + `}]}`})
		_, err := set.Load(t.Context(), bytes.NewReader(archive), LoadOptions{})
		if good && err != nil || !good && (!errors.As(err, new(*ArchiveError)) || !strings.Contains(err.Error(), strconv.Quote(mediaType))) {
			t.Errorf("%q: %v", mediaType, err)
		}
	}
}

// FuzzLoad loads any archive: it is an error, or images that are whole.
func FuzzLoad(f *testing.F) {
	f.Add(archiveOf(f, file{name: "manifest.json", data: `[{"Config":"c.json","Layers":["l.tar"],"RepoTags":["app:v1"]}]`},
		file{name: "c.json", data: oneLayer}, file{name: "l.tar", data: string(make([]byte, 1024))}))
	f.Add(archiveOf(f, file{name: "oci-layout", data: `{"imageLayoutVersion":"1.0.0"}`}, file{name: "index.json", data: `{"manifests":[]}`}))
	set := openImages(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		loaded, err := set.Load(context.Background(), bytes.NewReader(data), LoadOptions{MaxSize: 1 << 20})
		if err != nil {
			return
		}
		for _, img := range loaded {
			if err := set.hold(img.desc); err != nil {
				t.Errorf("%+v: %v", img, err)
			}
		}
	})
}

// TestLoadSparse loads an archive of a few bytes that has a file of many, as GNU tar writes sparse ones.
func TestLoadSparse(t *testing.T) {
	dir := t.TempDir()
	out, err := exec.Command("sh", "-c", "cd "+dir+" && truncate -s 1G hole && tar -S -cf a.tar hole").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := os.Open(filepath.Join(dir, "a.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := openImages(t).Load(t.Context(), f, LoadOptions{MaxSize: 1 << 20}); err == nil || !strings.Contains(err.Error(), "has files of more than 1048576 bytes") {
		t.Errorf("Load: %v", err)
	}
}
