package frontend

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kilnbuild/kiln/llb"
)

// anyImage is a Resolver that has every image for every platform.
type anyImage struct{}

func (anyImage) ResolveImage(_ context.Context, req ImageRequest) (*BaseImage, error) {
	image := &BaseImage{Digest: "sha256:" + strings.Repeat("cd", 32)}
	image.Config = dockerspec.DockerOCIImage{}
	image.Config.OS, image.Config.Architecture, image.Config.Variant = req.Platform.OS, req.Platform.Architecture, req.Platform.Variant
	image.Config.RootFS.DiffIDs = []digest.Digest{digest.FromString(req.Ref)}
	return image, nil
}

// TestCorpus lowers Dockerfiles after the patterns of real projects, every stage of each for two platforms, and compares what
// the checks find.
func TestCorpus(t *testing.T) {
	names, err := filepath.Glob("../testdata/corpus/*.txtar")
	if err != nil || len(names) < 60 {
		t.Fatal(len(names), err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil || len(archive.Files) != 2 {
				t.Fatal(len(archive.Files), err)
			}
			res, err := Build(t.Context(), archive.Files[0].Data, Options{
				AllStages: true, BuildPlatform: amd64, Platforms: []llb.Platform{amd64, {OS: "linux", Architecture: "arm64"}},
			}, anyImage{})
			if err != nil {
				t.Fatal(err)
			}
			if err := check(res); err != nil {
				t.Error(err)
			}
			var got strings.Builder
			for _, w := range res.Warnings {
				fmt.Fprintf(&got, "line %d: %s\n", w.Location.StartLine, w.Rule)
			}
			if *update {
				archive.Files[1].Data = []byte(got.String())
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want := string(archive.Files[1].Data); got.String() != want {
				t.Errorf("got\n%swant\n%s", got.String(), want)
			}
		})
	}
}
