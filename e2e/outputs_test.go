//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// Every kind of output is read by the tools that others have: skopeo, umoci, go-containerregistry.
func TestOutputs(t *testing.T) {
	name := registry + "/outputs:latest"
	out := t.TempDir()
	p := open(t, "outputs", "-t", name)
	metadata := filepath.Join(out, "metadata.json")
	pushed := p.build("--push", "--metadata-file", metadata)
	checkMetadata(t, metadata, remoteDigest(t, name), pushed.id)
	t.Run("by digest", func(t *testing.T) {
		repository := registry + "/outputs/bydigest"
		byDigest := filepath.Join(out, "bydigest.json")
		p.build("--output", "type=image,name="+repository+",push-by-digest=true,name-canonical=true,push=true", "--metadata-file", byDigest)
		digest := remoteDigest(t, name)
		checkMetadata(t, byDigest, digest, pushed.id)
		command(t, "skopeo", "inspect", "--tls-verify=false", "--raw", "docker://"+repository+"@"+digest)
		if exec.Command("skopeo", "inspect", "--tls-verify=false", "--raw", "docker://"+repository+":latest").Run() == nil {
			t.Error("what was pushed by its digest has a tag")
		}
	})
	image := p.build(
		"--output", "type=image",
		"--output", "type=oci,dest="+out+"/oci.tar",
		"--output", "type=oci,tar=false,dest="+out+"/oci",
		"--output", "type=oci,compression=zstd,tar=false,dest="+out+"/zstd",
		"--output", "type=docker,dest="+out+"/docker.tar",
	)
	command(t, "mkdir", out+"/untarred")
	command(t, "tar", "-C", out+"/untarred", "-xf", out+"/oci.tar")

	for what, source := range map[string]string{
		"registry":   "docker://" + name,
		"store":      "oci:" + os.Getenv("KILN_ROOT") + ":" + name,
		"oci tar":    "oci-archive:" + out + "/oci.tar",
		"oci dir":    "oci:" + out + "/oci",
		"docker tar": "docker-archive:" + out + "/docker.tar",
	} {
		t.Run(what, func(t *testing.T) {
			var inspected struct{ Labels map[string]string }
			text := command(t, "skopeo", "inspect", "--tls-verify=false", source)
			if err := json.Unmarshal([]byte(text), &inspected); err != nil || inspected.Labels["what"] != "outputs" {
				t.Errorf("skopeo inspect says %s", text)
			}
			rootfs := unpack(t, source)
			if got := command(t, "chroot", rootfs, "cat", "/made"); got != "made by RUN" {
				t.Errorf("/made holds %q", got)
			}
			if _, err := os.Lstat(filepath.Join(rootfs, "etc/debian_version")); err == nil {
				t.Error("/etc/debian_version was removed, and is there")
			}
		})
	}

	validated := func(what string, open func() (v1.Image, error)) {
		t.Run(what+" validated", func(t *testing.T) {
			img, err := open()
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Image(img); err != nil {
				t.Error(err)
			}
		})
	}
	validated("oci tar", func() (v1.Image, error) { return onlyImage(out + "/untarred") })
	validated("oci dir", func() (v1.Image, error) { return onlyImage(out + "/oci") })
	validated("docker tar", func() (v1.Image, error) { return tarball.ImageFromPath(out+"/docker.tar", nil) })
	t.Run("oci in zstd", func(t *testing.T) { checkLayers(t, out+"/zstd") })

	// A step that does the same again makes the same image, without any cache as well.
	p.build("--no-cache").wantSame(image)
}

// onlyImage opens the image of an OCI layout.
func onlyImage(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(m.Manifests) != 1 {
		return nil, fmt.Errorf("%s has %d images", dir, len(m.Manifests))
	}
	return index.Image(m.Manifests[0].Digest)
}

// checkLayers uncompresses the layers of a layout: neither umoci nor the validator reads zstd.
func checkLayers(t *testing.T, dir string) {
	img, err := onlyImage(dir)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	inZstd := 0
	for _, l := range layers {
		want, err := l.DiffID()
		if err != nil {
			t.Fatal(err)
		}
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := v1.SHA256(r)
		r.Close()
		if err != nil || got != want {
			t.Errorf("a layer has diff id %s, and should have %s: %v", got, want, err)
		}
		if kind, err := l.MediaType(); err != nil {
			t.Error(err)
		} else if strings.HasSuffix(string(kind), "+zstd") {
			inZstd++
		}
	}
	if inZstd == 0 || inZstd == len(layers) {
		t.Errorf("%d of %d layers are in zstd; those of steps should be, and the base's not", inZstd, len(layers))
	}
}

// checkMetadata checks a --metadata-file.
func checkMetadata(t *testing.T, file, digest, config string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Digest string `json:"containerimage.digest"`
		Config string `json:"containerimage.config.digest"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	if m.Digest != digest || m.Config != config {
		t.Errorf("the metadata are %s, and should name %s and %s", data, digest, config)
	}
}
