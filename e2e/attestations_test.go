//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAttestations has docker's buildx read the provenance of an image, and kiln that of what buildx makes of it.
func TestAttestations(t *testing.T) {
	buildx := filepath.Join(os.Getenv("TOOLS"), "buildx")
	name := registry + "/attested:v1"
	dir := t.TempDir()
	dockerfile := "FROM " + debian + " AS base\nRUN echo made >/made\nFROM scratch\nARG VERSION\nCOPY --from=base /made /made-$VERSION\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"v1", "v0.2"} {
		for _, mode := range []string{"min", "max"} {
			t.Run(version+" "+mode, func(t *testing.T) {
				command(t, kilnPath, "build", "-q", "--push", "-t", name, "--build-arg", "VERSION=7",
					"--provenance=mode="+mode+",version="+version+",builder-id=https://ci.example/1", dir)
				text := command(t, buildx, "imagetools", "inspect", "--format", "{{json .Provenance}}", name)
				var read struct {
					SLSA struct {
						BuildDefinition struct {
							BuildType            string
							ResolvedDependencies []struct{ URI string }
							InternalParameters   struct{ BuildConfig json.RawMessage }
						}
						RunDetails struct{ Builder struct{ ID string } }
						// Those of v0.2.
						BuildType   string
						Builder     struct{ ID string }
						Materials   []struct{ URI string }
						BuildConfig json.RawMessage
					}
				}
				if err := json.Unmarshal([]byte(text), &read); err != nil {
					t.Fatalf("%v\n%s", err, text)
				}
				p, builder := &read.SLSA, read.SLSA.RunDetails.Builder.ID
				buildType, materials, steps := p.BuildDefinition.BuildType, p.BuildDefinition.ResolvedDependencies, p.BuildDefinition.InternalParameters.BuildConfig
				if version == "v0.2" {
					builder, buildType, materials, steps = p.Builder.ID, p.BuildType, p.Materials, p.BuildConfig
				}
				if builder != "https://ci.example/1" || !strings.Contains(buildType, "kilnbuild/kiln") || (len(steps) > 0) != (mode == "max") {
					t.Errorf("buildx reads: %s", text)
				}
				if len(materials) != 1 || !strings.HasPrefix(materials[0].URI, "pkg:docker/"+registry+"/debian@bookworm?platform=linux%2F") {
					t.Errorf("buildx reads the materials %v", materials)
				}
			})
		}
	}
	copied := registry + "/copied:v1"
	command(t, buildx, "imagetools", "create", "-t", copied, name)
	if text := command(t, kilnPath, "attest", "show", "--remote", copied); !strings.Contains(text, "https://ci.example/1") {
		t.Errorf("what buildx copied has lost its attestations: %s", text)
	}
}
