package llbpb

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/llb"
)

// anyImage has every image for every platform.
type anyImage struct{}

func (anyImage) ResolveImage(_ context.Context, req frontend.ImageRequest) (*frontend.BaseImage, error) {
	image := &frontend.BaseImage{Digest: digest.FromString(req.Ref + req.Platform.String()).String(), Config: dockerspec.DockerOCIImage{}}
	image.Config.OS, image.Config.Architecture, image.Config.Variant = req.Platform.OS, req.Platform.Architecture, req.Platform.Variant
	image.Config.RootFS.DiffIDs = []digest.Digest{digest.FromString(req.Ref)}
	return image, nil
}

// dockerfiles calls f with every Dockerfile of the repository's tests.
func dockerfiles(t testing.TB, f func(name string, dockerfile []byte)) {
	archives, err := filepath.Glob("../../testdata/corpus/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("../../frontend/testdata/*.txt*")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, name := range append(archives, more...) {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range archive.Files {
			if strings.Contains(string(file.Data), "FROM ") {
				f(filepath.Base(name)+"/"+file.Name, file.Data)
				count++
			}
		}
	}
	if count < 60 {
		t.Fatalf("there are %d Dockerfiles", count)
	}
}

// What was encoded is decoded as the same vertices.
func TestRoundTrip(t *testing.T) {
	graphs := 0
	dockerfiles(t, func(name string, dockerfile []byte) {
		res, err := frontend.Build(t.Context(), dockerfile, frontend.Options{
			AllStages: true, BuildPlatform: llb.Host(), Platforms: []llb.Platform{llb.Host(), {OS: "linux", Architecture: "riscv64"}},
			Allow: []string{"network.host", "security.insecure", "device"}, NoCacheFilter: []string{"build"},
			BuildArgs: map[string]string{"HTTP_PROXY": "http://proxy"},
		}, anyImage{})
		if err != nil {
			return // there are tests of what is wrong among them
		}
		for _, image := range res.Images {
			graphs++
			same(t, name, image.Root)
		}
	})
	if graphs < 100 {
		t.Errorf("%d graphs were compared", graphs)
	}
}

// same fails the test if an output is another one after it was encoded and decoded.
func same(t *testing.T, name string, o llb.Output) {
	t.Helper()
	def, err := Encode(o)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if len(def.Def) == 0 {
		if o.Vertex.Op() != llb.Op(llb.Scratch{}) {
			t.Errorf("%s: it is encoded as nothing", name)
		}
		return
	}
	g, err := Decode(t.Context(), def, Options{Allow: []string{"network.host", "security.insecure"}})
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if g.Output.Vertex.Digest() != o.Vertex.Digest() || g.Output.Index != o.Index {
		want := map[llb.Digest]bool{}
		for v := range llb.Vertices([]llb.Output{o}) {
			want[v.Digest()] = true
		}
		for v := range llb.Vertices([]llb.Output{g.Output}) {
			if !want[v.Digest()] {
				t.Errorf("%s: it has another vertex, %q: %+v %+v", name, v.Meta().Name(), v.Op(), v.Meta())
			}
		}
	}
	again, err := Encode(g.Output)
	if err != nil || len(again.Def) != len(def.Def) {
		t.Errorf("%s: it is encoded as %d ops, and again as %d: %v", name, len(def.Def), len(again.GetDef()), err)
	}
}

// Sources that only clients name are the same vertices again.
func TestRoundTripOfSources(t *testing.T) {
	g := &llb.Graph{}
	scratch := g.Add(llb.Scratch{}, llb.Meta{}).Output(0)
	hash, sum := strings.Repeat("1", 40), digest.FromString("x").String()
	bundle := llb.Blob{
		Ref: "docker.io/a/b", Digest: sum, Store: "store", Session: "other", Filename: llb.BundleFile, BundleOf: "https://host/r.git",
	}
	bundled := llb.Git{Remote: "https://host/r.git", Checksum: hash, Bundled: true}
	for name, o := range map[string]llb.Output{
		"blob":     g.Add(llb.Blob{Ref: "r.io/a", Digest: sum, Filename: digest.FromString("x").Encoded()}, llb.Meta{}, scratch).Output(0),
		"named":    g.Add(llb.Blob{Ref: "r.io/a", Digest: sum, Filename: "f"}, llb.Meta{}, scratch).Output(0),
		"bundled":  g.Add(bundled, llb.Meta{}, scratch, g.Add(bundle, llb.Meta{}, scratch).Output(0)).Output(0),
		"asBundle": g.Add(llb.Git{Remote: "https://host/r.git", Ref: "main", AsBundle: true}, llb.Meta{}, scratch).Output(0),
		"served":   g.Add(llb.HTTP{URL: "https://host/f", Filename: "f", ServerNames: true}, llb.Meta{}, scratch).Output(0),
		"renamed":  g.Add(llb.HTTP{URL: "https://host/f", Filename: "g"}, llb.Meta{}, scratch).Output(0),
	} {
		same(t, name, o)
	}
}

// The client can wait, while it is asked about one source, until it is asked about another, and the first error ends that.
func TestAdmitAtOnce(t *testing.T) {
	g := &llb.Graph{}
	var roots []llb.Output
	for _, name := range []string{"a", "b"} {
		roots = append(roots, g.Add(llb.Image{Ref: "r.io/" + name + ":1", Platform: "linux/amd64"}, llb.Meta{}).Output(0))
	}
	def, err := Encode(g.Add(llb.Merge{}, llb.Meta{}, roots...).Output(0))
	if err != nil {
		t.Fatal(err)
	}
	other := make(chan struct{})
	meet := func(_ context.Context, source *pb.SourceOp, _ *pb.Platform) error {
		if source.Identifier == "docker-image://r.io/a:1" {
			<-other
		} else {
			source.Identifier = "docker-image://r.io/c:1"
			close(other)
		}
		return nil
	}
	found, err := Decode(t.Context(), def, Options{Admit: meet})
	if err != nil {
		t.Fatal(err)
	}
	if got := found.Output.Vertex.Inputs()[1].Vertex.Op().(llb.Image).Ref; got != "r.io/c:1" {
		t.Errorf("what was replaced is %s", got)
	}
	forbid := func(ctx context.Context, source *pb.SourceOp, _ *pb.Platform) error {
		if source.Identifier == "docker-image://r.io/a:1" {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		return errors.New("forbidden")
	}
	if _, err := Decode(t.Context(), def, Options{Admit: forbid}); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("with a source that is forbidden: %v", err)
	}
}
